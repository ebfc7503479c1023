// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leaves to the kernel what the kernel tracks and translates, while Docker's rules of netfilter are
//! in place: connections that are older than the forwarder, and what no flow can begin with.
//!
//! Such a packet stays as it is. Where it leaves, the kernel must have translated it, to no port of a
//! flow: [`egress::unmarked`](super::egress::unmarked).

use crate::abi::{FlowRef, armed, device};
use crate::context::PacketContext;
use crate::mark;
use crate::meta::Side;
use crate::reason::Reason;
use crate::subprograms::Steps;
use crate::wire::header::Ip;

impl<F: Ip, T: Steps<F>> PacketContext<'_, F, T> {
    /// The verdict on a packet without a flow that is the kernel's: its tuple is that of a connection
    /// which the kernel tracks, its sender is not known yet, it was refused a flow, or no flow begins
    /// now. `None` for all others. The hooks behind this one let the packet pass.
    #[inline(always)]
    pub fn kernel_owned(&self, refused: bool) -> Option<Reason> {
        let is_kernels = match self.tables.settings().armed {
            armed::ADOPT => {
                refused
                    || self.tables.flow_ref(&self.packet.tuple) == Some(FlowRef::KERNEL)
                    || self.is_of_newcomer()
            }
            armed::HANDOVER => true,
            _ => false,
        };
        if !is_kernels {
            return None;
        }
        Some(self.leave())
    }

    /// Leaves the packet to the kernel as it is. The hooks behind this one let the packet pass; where
    /// the kernel decides about all traffic of the network, there are none.
    #[inline(always)]
    pub(super) fn leave(&self) -> Reason {
        let is_guarded = || {
            let device = self.tables.device(self.meta.ifindex);
            device.is_some_and(|device| device.kind != device::FOLLOWED)
        };
        if self.side as u8 != Side::Outside as u8 && is_guarded() {
            self.tables.mark(mark::LEAVES);
        }
        Reason::KernelOwned
    }

    /// Whether the packet comes from a container that the agent does not know yet, as of one that
    /// started while no agent runs. The kernel may already have translated a packet to it, to a port
    /// that Docker has published.
    #[inline(always)]
    fn is_of_newcomer(&self) -> bool {
        self.side != Side::Outside && self.tables.endpoint_slot(self.packet.tuple.src).is_none()
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
