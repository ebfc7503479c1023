// SPDX-License-Identifier: MIT OR Apache-2.0
//! The border to BPF's global functions, each declared once, in two lists.
//!
//! The verifier proves a global function by itself, and not again on every path that leads to a
//! call. What crosses the border is therefore plain numbers ([`Word`]); a [`PacketContext`] stays
//! in a map meanwhile. From the lists follow the traits by which the packet logic calls the
//! functions, the kernel's global functions, and direct calls for hosts.

use crate::abi::{End, FlowRef, FlowState};
use crate::clock::Ticks;
use crate::context::PacketContext;
use crate::environment::{FlowTable, FragmentState, Output, Routes, SkbOutput};
use crate::event::EventKind;
use crate::family::Family;
use crate::meta::{Meta, Side};
use crate::reason::Reason;
use crate::tracking::verdict::{PreCheck, Transition, Verdict};
use crate::wire::frame::Frame;
use crate::wire::header::Ip;
use crate::wire::parse::Packet;

/// Calls the macro `$with` with the functions of connection tracking that are global functions:
/// name, arguments and result as in [`Subprograms`], and the function behind it.
#[macro_export]
macro_rules! for_each_subprogram {
    ($with:ident) => {
        $with! {
            /// Collects some expired flows.
            fn sweep_some() = conntrack::sweep::sweep_some;
            /// Charges a new flow to the endpoint that opens it; the reason if it may not open it.
            fn charge(originator: $crate::abi::End) -> Option<$crate::reason::Reason>
                = conntrack::quota::charge;
            /// Takes a record for a flow of this originator's slot.
            fn take_record(originator: u32) -> Option<$crate::abi::FlowRef>
                = conntrack::ring::take_record;
            /// Publishes a reserved record with this flow state.
            fn publish(index: u32, flow_state: $crate::abi::FlowState)
                = conntrack::flow::publish;
            /// Ends the flow in a record, if its state is still this one; returns whether it did.
            fn claim(
                index: u32,
                flow_state: $crate::abi::FlowState,
                why: $crate::event::EventKind
            ) -> bool = conntrack::flow::claim;
            /// The first half of window tracking, with a segment in two words.
            fn prepare(
                index: u32,
                flow_state: $crate::abi::FlowState,
                numbers: u64,
                facts: u64
            ) -> $crate::tracking::verdict::PreCheck = conntrack::window::prepare;
            /// The second half of window tracking, with a segment in two words.
            fn settle(
                index: u32,
                transition: $crate::tracking::verdict::Transition,
                numbers: u64,
                facts: u64
            ) -> $crate::tracking::verdict::Verdict = conntrack::window::settle;
            /// The next state of an SCTP association and its timeout, with states as numbers.
            fn follow(state: u8, chunk: u8, reply: bool, trusted: bool)
                -> (u8, $crate::clock::Ticks) = conntrack::sctp::follow_by_number;
            /// The register of a CRC32c after this many zero bytes.
            fn shift(register: u32, octets: u16) -> u32 = conntrack::sctp::shift;
        }
    };
}

/// Calls the macro `$with` with the steps of the packet path that are global functions. Each is a
/// method of [`PacketContext`] of the same name.
#[macro_export]
macro_rules! for_each_step {
    ($with:ident) => {
        $with! {
            /// Forwards a packet along its flow; `None` if it has none.
            fn forward_established() -> Option<$crate::reason::Reason>;
            /// Forwards an ICMP error to the sender of the packet that it quotes.
            fn forward_icmp_error() -> Option<$crate::reason::Reason>;
            /// Checks a container's packet by its frame and its network header.
            fn classify() -> Option<$crate::reason::Reason>;
            /// Leaves a packet without a flow to the kernel, if it is the kernel's.
            fn kernel_owned(refused: bool) -> Option<$crate::reason::Reason>;
            /// Creates a flow for the packet. `None` if a flow exists now.
            fn create_flow() -> Option<$crate::reason::Reason>;
            /// Checks the source of a flow that a packet from outside has just created.
            fn verify_source() -> Option<$crate::reason::Reason>;
            /// Notes that the kernel lets a packet of a followed flow out.
            fn let_out() -> Option<$crate::reason::Reason>;
            /// Translates the source of a packet that leaves the kernel path.
            fn snat_on_egress() -> Option<$crate::reason::Reason>;
            /// Gives a packet that the host itself sends a flow, if a container's flow needs that.
            fn translate_host_flow() -> Option<$crate::reason::Reason>;
            /// Records a packet without ports that only the host hears.
            fn record_for_host() -> Option<$crate::reason::Reason>;
            /// Restores the quote in an ICMP error that the host itself sends.
            fn restore_own_error() -> Option<$crate::reason::Reason>;
            /// Restores the checksum of an SCTP packet that an ICMP error quotes.
            fn restore_crc(before: u32, after: u32);
            /// The window scale that a SYN offers.
            fn scale() -> u8;
        }
    };
}

macro_rules! declare_subprograms {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? = $($path:ident)::+;)+) => {
        /// The functions of connection tracking that are global functions.
        pub trait Subprograms<F: Family> {
            $($(#[$doc])* fn $name(&self, $($arg: $type),*) $(-> $out)?;)+
        }
    };
}

macro_rules! declare_steps {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?;)+) => {
        /// The larger steps of the packet path.
        pub trait Steps<F: Ip>: Forwarding<F> + FragmentState<F> + SkbOutput<F> + Sized {
            $(
                $(#[$doc])*
                fn $name(
                    &self,
                    context: &mut PacketContext<'_, F, Self>
                    $(, $arg: $type)*
                ) $(-> $out)?;
            )+
            /// Says on which side the packet is, before any other step.
            fn enter(&self, side: Side);
            /// [`handle_fragment`](crate::steps::fragments::handle_fragment). It takes the packet as
            /// parsed and may give it the class and the ports of its datagram.
            fn handle_fragment(
                &self,
                frame: Frame<'_>,
                meta: &Meta,
                side: Side,
                packet: &mut Packet<F>,
            ) -> Option<Reason>;
            /// The folded ones' complement sum of everything from the transport header to the end of
            /// the packet, also beyond the part of the frame that is directly accessible; 0 if the
            /// frame is shorter than the packet's header says.
            fn sum(&self, context: &PacketContext<'_, F, Self>) -> u16;
            /// The frame's length in bytes, including the part that is not directly accessible.
            fn length(&self) -> u32;
        }
    };
}

for_each_subprogram!(declare_subprograms);
for_each_step!(declare_steps);

/// What connection tracking works on: its maps and its global functions.
pub trait Tracking<F: Family>: FlowTable<F> + Subprograms<F> {}

impl<F: Family, T: FlowTable<F> + Subprograms<F>> Tracking<F> for T {}

/// What forwarding the packets of established flows takes, at XDP as at tcx.
pub trait Forwarding<F: Family>: Tracking<F> + Routes<F> + Output<F> {}

impl<F: Family, T: Tracking<F> + Routes<F> + Output<F>> Forwarding<F> for T {}

/// The body of `impl Subprograms` for hosts: direct calls.
#[macro_export]
macro_rules! call_subprograms {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? = $($path:ident)::+;)+) => {
        $(
            fn $name(&self, $($arg: $type),*) $(-> $out)? {
                // Packed and unpacked, as for the call of a global function in the kernel.
                $(let $arg = <$type as $crate::subprograms::Word>::unpack($crate::subprograms::Word::pack($arg));)*
                let out = $crate::$($path)::+(self, $($arg),*);
                $crate::subprograms::Word::unpack($crate::subprograms::Word::pack(out))
            }
        )+
    };
}

/// The body of `impl Steps` for hosts, but for what is not in the list.
#[macro_export]
macro_rules! call_steps {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?;)+) => {
        $(
            fn $name(
                &self,
                context: &mut $crate::context::PacketContext<'_, $crate::family::V4, Self>
                $(, $arg: $type)*
            ) $(-> $out)? {
                context.$name($($arg),*)
            }
        )+
    };
}

/// A value that crosses the border of a global function in one register.
pub trait Word: Sized {
    /// The number in the register.
    type Number;
    /// The value as a number.
    fn pack(self) -> Self::Number;
    /// The value of a number.
    fn unpack(number: Self::Number) -> Self;
}

macro_rules! words {
    ($($type:ty as $number:ty, |$value:ident| $pack:expr, |$word:ident| $unpack:expr;)+) => {
        $(
            impl Word for $type {
                type Number = $number;

                #[inline(always)]
                fn pack(self) -> $number {
                    let $value = self;
                    $pack
                }

                #[inline(always)]
                fn unpack($word: $number) -> Self {
                    $unpack
                }
            }
        )+
    };
}

/// A reason's number that no reason has.
pub const NO_REASON: u32 = 0xff;

words! {
    () as u32, |_nothing| 0, |_word| ();
    bool as u32, |value| value as u32, |word| word != 0;
    u8 as u32, |value| value as u32, |word| word as u8;
    u16 as u32, |value| value as u32, |word| word as u16;
    u32 as u32, |value| value, |word| word;
    u64 as u64, |value| value, |word| word;
    EventKind as u32, |kind| kind as u32, |word| Self::from_u32(word);
    Option<Reason> as u32, |reason| reason.map_or(NO_REASON, |reason| reason as u32),
        |word| Reason::from_u8(word as u8);
    FlowState as u64, |state| state.0, |word| Self(word);
    End as u64, |end| end.slot as u64 | (end.generation as u64) << 32,
        |word| Self { slot: word as u32, generation: (word >> 32) as u32 };
    FlowRef as u64, |flow| flow.index as u64 | (flow.id as u64) << 32,
        |word| Self { index: word as u32, id: (word >> 32) as u32 };
    Option<FlowRef> as u64, |flow| flow.map_or(u64::MAX, Word::pack),
        |word| (word != u64::MAX).then(|| FlowRef::unpack(word));
    (u8, Ticks) as u64, |pair| pair.0 as u64 | (pair.1 as u64) << 32,
        |word| (word as u8, (word >> 32) as Ticks);
    PreCheck as u64, |check| check.pack(), |word| Self::unpack(word);
    Transition as u64, |transition| transition.pack(), |word| Self::unpack(word);
    Verdict as u64, |verdict| verdict.pack(), |word| Self::unpack(word);
}
