// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reasons: why a packet got its verdict. Each reason is a counter, a label, and a row of
//! `docs/packet-path.md`.

/// The path of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// Translated and redirected by the forwarder's programs alone.
    Fast,
    /// Passed to the kernel's stack, possibly translated.
    Kernel,
    /// Dropped.
    Drop,
    /// On the kernel path, at a further hook: the first hook has counted the packet.
    Again,
}

impl Path {
    /// The path's name in the CLI.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Kernel => "kernel",
            Self::Drop => "drop",
            Self::Again => "again",
        }
    }
}

macro_rules! reasons {
    ($($name:ident = $path:ident $label:literal $text:literal;)+) => {
        /// Why a packet got its verdict.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Reason {
            $(#[doc = $text] $name,)+
        }

        impl Reason {
            /// Every reason, in the order of their counters.
            pub const ALL: [Self; [$(Self::$name),+].len()] = [$(Self::$name),+];

            /// The reason with this number.
            #[inline(always)]
            #[must_use]
            pub const fn from_u8(number: u8) -> Option<Self> {
                $(if number == Self::$name as u8 {
                    return Some(Self::$name);
                })+
                None
            }

            /// The path of a packet with this reason.
            #[inline(always)]
            #[must_use]
            pub const fn path(self) -> Path {
                match self { $(Self::$name => Path::$path,)+ }
            }

            /// The reason's name in the CLI and the documents.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// One sentence that explains the reason.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    Forwarded = Fast "forwarded" "A packet of a flow, translated and redirected.";
    IcmpError = Fast "icmp-error" "An ICMP error about a flow: the packet that it quotes is translated back, and the error redirected.";

    ToHost = Kernel "to-host" "For the host itself.";
    FromHost = Kernel "from-host" "From the host itself, or forwarded by the host for others.";
    Bridged = Kernel "bridged" "Between two containers of one network: the bridge switches it.";
    NotOurs = Kernel "not-ours" "Neither from nor for a container.";
    NotForUs = Kernel "not-for-us" "A frame for another station, a broadcast, or a frame with a VLAN id other than 0.";
    NotIp = Kernel "not-ip" "Not IPv4: ARP and others, or IPv6 that is neither a container's nor for the host.";
    Malformed = Kernel "malformed" "No valid header, and not from a container: the kernel decides by the network header.";
    Truncated = Kernel "truncated" "The headers are incomplete, and the packet is not from a container.";
    NoRoute = Kernel "no-route" "No route forwards the packet: the kernel answers.";
    HopLimit = Kernel "hop-limit" "The TTL is used up: the kernel answers with time exceeded.";
    TooBig = Kernel "too-big" "Larger than the next device's MTU: the kernel fragments the packet, or answers with fragmentation needed.";
    Options = Kernel "options" "The packet has IP options: the kernel handles them.";
    Routed = Kernel "routed" "To or from a container without translation and without a flow: the kernel routes the packet.";
    Reassembled = Kernel "reassembled" "A fragment: the kernel reassembles its datagram.";
    NotHooked = Kernel "not-hooked" "The container's veth has no hook yet: the bridge delivers the packet.";
    Shaped = Kernel "shaped" "Others shape or filter the traffic of the incoming or outgoing device: the packet takes the kernel path.";
    Ipsec = Kernel "ipsec" "There are IPsec policies: the kernel applies them.";
    NoEthernet = Kernel "no-ethernet" "The incoming or outgoing device has no Ethernet header, or the next hop is IPv6: the kernel routes the packet.";
    HostFlow = Kernel "host-flow" "Of a flow of the host: translated because a container's flow had its port, or of a protocol without ports.";
    HostError = Kernel "host-error" "An ICMP error of the host about a flow: the packet that it quotes is translated back.";
    KernelOwned = Kernel "kernel-owned" "Of a connection that the kernel tracks and translates: it was there before the forwarder, or cannot begin here.";
    Unarmed = Kernel "unarmed" "The agent's first start is not complete yet: every packet passes unchanged.";

    Completed = Again "completed" "The second half of the kernel path: the source is translated at egress.";
    Whole = Again "whole" "A fragment of a reassembled datagram, on its way back to the hook where it arrived.";
    Admitted = Again "admitted" "An earlier hook has let the packet pass, and nothing is left to translate.";

    SpoofedSource = Drop "spoofed-source" "A source that is not the sender's: from a container, another endpoint's; from outside, the host's, a container's, or one to which no route leads back.";
    ForeignSource = Drop "foreign-source" "A container's packet with a source outside of its network.";
    SpoofedNeighbour = Drop "spoofed-neighbour" "A container's frame with another MAC address, ARP or neighbour discovery for another's address, or a message that only routers and DHCP servers send.";
    DhcpServer = Drop "dhcp-server" "A DHCP server's answer from a container.";
    OtherFrame = Drop "other-frame" "A container's frame with a VLAN tag, an EtherType or a group address that its network does not allow.";
    InvalidHeader = Drop "invalid-header" "A container's packet without a valid network header, or without a valid transport header where it needs translation.";
    Loopback = Drop "loopback" "A source or destination in 127.0.0.0/8, on a device other than loopback.";
    Isolated = Drop "isolated" "From one Docker network to another.";
    Internal = Drop "internal" "Into or out of an internal network.";
    NoIpv6 = Drop "no-ipv6" "IPv6 from or to a container whose network has no IPv6.";
    Ipv6Header = Drop "ipv6-header" "IPv6 whose headers cannot be parsed: from a container, or to the host where a list of clients depends on the port.";
    Ipv6Forward = Drop "ipv6-forward" "A container's IPv6 packet that the host would forward: containers reach only their own network and the host.";
    PeerBlocked = Drop "peer-blocked" "Between containers of a network without inter-container communication.";
    DirectRouting = Drop "direct-routing" "From outside to a container's own address, which the container's network does not allow.";
    Policy = Drop "policy" "From a client that the list of a published port or of a network refuses.";
    Untranslated = Drop "untranslated" "A container's packet that was about to leave although no hook had let it pass.";
    Unprotected = Drop "unprotected" "Translated, to a destination for which an IPsec policy demands protection that the packet does not have.";
    UnknownNetwork = Drop "unknown-network" "Forwarded from or to a device that the agent does not know, such as that of a network created while no agent ran.";
    Fragment = Drop "fragment" "A fragment that needs translation and cannot be translated: its protocol has no ports, or is SCTP with a changed port, or its datagram is not reassembled.";
    Protocol = Drop "protocol" "DCCP, UDP-Lite, or ICMP that is neither a query nor an error, where it needs translation.";
    IcmpStray = Drop "icmp-stray" "An ICMP error that does not fit its flow, or a container's that is about no flow.";
    NoFlow = Drop "no-flow" "TCP or SCTP that belongs to no flow and may not open one.";
    TcpState = Drop "tcp-state" "TCP that is invalid in its flow's state.";
    TcpWindow = Drop "tcp-window" "TCP whose sequence numbers are outside of its connection's windows.";
    TableFull = Drop "table-full" "No flow record is free.";
    FlowQuota = Drop "flow-quota" "The container has as many flows open as it may.";
    FlowRate = Drop "flow-rate" "The container opens flows faster than it may.";
    FragmentQuota = Drop "fragment-quota" "The container holds as many bytes in incomplete datagrams as it may.";
    PortsExhausted = Drop "ports-exhausted" "No port is free for a translation, or the protocol has no ports and another flow uses the remote's address.";
    NoEndpoint = Drop "no-endpoint" "To a published port whose container does not exist.";
    TargetGone = Drop "target-gone" "The container's device does not exist any more.";
    RouteMoved = Drop "route-moved" "The flow's route has another source address now: the flow has ended.";
    FlowGone = Drop "flow-gone" "The flow ended while its packet was being processed.";
    DeviceUnknown = Drop "device-unknown" "The outgoing device is not hooked yet.";
    NoSource = Drop "no-source" "The outgoing device has no address to masquerade with.";
}

impl Reason {
    /// Reasons that a limit is exhausted: the container gets an ICMP error (RFC 5508 REQ-8), and
    /// the agent reports them to the administrator.
    pub const EXHAUSTED: [Self; 4] = [
        Self::TableFull,
        Self::FlowQuota,
        Self::FlowRate,
        Self::PortsExhausted,
    ];

    /// Whether it is one of [`Self::EXHAUSTED`].
    #[inline(always)]
    #[must_use]
    pub const fn is_exhaustion(self) -> bool {
        matches!(
            self,
            Self::TableFull | Self::FlowQuota | Self::FlowRate | Self::PortsExhausted
        )
    }
}

/// How many reasons there are.
pub const COUNT: usize = Reason::ALL.len();
