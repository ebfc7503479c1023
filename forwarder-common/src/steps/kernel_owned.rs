// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leaves to the kernel what the kernel tracks and translates, while Docker's rules of netfilter are
//! in place: connections that are older than the forwarder, and what no flow can begin with.
//!
//! Such a packet stays as it is. Where it leaves, the kernel must have translated it.

use crate::abi::{FlowRef, armed};
use crate::conntrack::flow;
use crate::context::PacketContext;
use crate::mark;
use crate::meta::Side;
use crate::policy::owner;
use crate::reason::Reason;
use crate::subprograms::Steps;
use crate::wire::header::Ip;

impl<F: Ip, T: Steps<F>> PacketContext<'_, F, T> {
    /// The verdict on a packet without a flow that is the kernel's: its tuple is that of a connection
    /// which the kernel tracks, or it was refused a flow, or no flow begins now. `None` for all
    /// others. The hooks behind this one let the packet pass.
    #[inline(always)]
    pub fn kernel_owned(&self, refused: bool) -> Option<Reason> {
        let is_kernels = match self.tables.settings().armed {
            armed::ADOPT => {
                refused || self.tables.flow_ref(&self.packet.tuple) == Some(FlowRef::KERNEL)
            }
            armed::HANDOVER => true,
            _ => false,
        };
        if !is_kernels {
            return None;
        }
        if self.side != Side::Outside {
            self.tables.mark(mark::LEAVES);
        }
        Some(Reason::KernelOwned)
    }

    /// Why a leaving packet that was left to the kernel is dropped, if it is: the kernel has not
    /// translated it, or has given it the address and port of a flow that the kernel does not know.
    #[inline(always)]
    pub fn check_kernel_owned(&self) -> Option<Reason> {
        let (tables, tuple) = (self.tables, &self.packet.tuple);
        if let Some(reason) = owner::of_a_container(tables, self.meta, tuple.src) {
            return Some(reason);
        }
        let hit = flow::find(tables, &tuple.reversed())?;
        flow::is_current(tables, hit.flow, tables.now()).then_some(Reason::PortsExhausted)
    }
}

/// Whether a packet was refused because the forwarder cannot translate it, which the kernel perhaps
/// can: it may know the packet's connection.
#[inline(always)]
pub(super) const fn is_untranslatable(refusal: Reason) -> bool {
    matches!(
        refusal,
        Reason::NoFlow | Reason::IcmpStray | Reason::Fragment | Reason::Protocol
    )
}
