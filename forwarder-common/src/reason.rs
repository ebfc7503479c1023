// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a packet went the way it went: each reason is a counter, a label and a row of
//! `docs/packet-path.md`.

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// Rewritten and redirected by our programs alone.
    Fast,
    /// Handed to the kernel's stack, perhaps rewritten.
    Kernel,
    /// Dropped.
    Drop,
    /// On the kernel's path past a further hook of ours: the first one has counted it.
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
        /// Why a packet went the way it went.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Reason {
            $(#[doc = $text] $name,)+
        }

        impl Reason {
            /// Every reason, in the order of their counters.
            pub const ALL: [Self; [$(Self::$name),+].len()] = [$(Self::$name),+];

            /// The reason of a number.
            #[inline(always)]
            #[must_use]
            pub const fn from_u8(number: u8) -> Option<Self> {
                $(if number == Self::$name as u8 {
                    return Some(Self::$name);
                })+
                None
            }

            /// What becomes of a packet for this reason.
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

            /// One sentence for a person.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    Forwarded = Fast "forwarded" "A flow's packet, rewritten and redirected.";
    IcmpError = Fast "icmp-error" "An ICMP error about a flow, its inner header restored and redirected.";

    ToHost = Kernel "to-host" "For the host itself.";
    FromHost = Kernel "from-host" "From the host itself, or forwarded for others.";
    Bridged = Kernel "bridged" "Between two containers of one network: the bridge switches it.";
    NotOurs = Kernel "not-ours" "Neither from nor for a container.";
    NotForUs = Kernel "not-for-us" "Another station's frame, a broadcast, or a VLAN tag other than VLAN id 0.";
    NotIp = Kernel "not-ip" "Not IPv4: ARP and others, and IPv6 that is neither a container's nor for the host.";
    Malformed = Kernel "malformed" "No valid header, and not from a container: the kernel decides by the network header.";
    Truncated = Kernel "truncated" "The headers are not all there, and it is not from a container.";
    NoRoute = Kernel "no-route" "No route forwards it: the kernel answers.";
    HopLimit = Kernel "hop-limit" "TTL at its end: the kernel answers with time exceeded.";
    TooBig = Kernel "too-big" "Over the next device's MTU: the kernel fragments it, or answers with fragmentation needed.";
    Options = Kernel "options" "IP options: the kernel handles them.";
    Routed = Kernel "routed" "To or from a container that is not translated, without a flow: the kernel routes it.";
    Reassembled = Kernel "reassembled" "A fragment: the kernel puts its datagram together.";
    NotHooked = Kernel "not-hooked" "The container's veth has no shortcut yet: the bridge delivers it.";
    Shaped = Kernel "shaped" "In or out by a device whose traffic others shape or filter: the kernel carries it there.";
    Ipsec = Kernel "ipsec" "There are IPsec policies: the kernel applies them.";
    NoEthernet = Kernel "no-ethernet" "In or out by a device without Ethernet header, or to an IPv6 next hop: the kernel routes it.";
    HostFlow = Kernel "host-flow" "The host's own: of a flow whose port a container's flow had, translated; or of a protocol without ports.";
    HostError = Kernel "host-error" "The host's own ICMP error about a flow, its inner header restored.";
    Unarmed = Kernel "unarmed" "Before the agent's first start is complete: everything passes as before it came.";

    Completed = Again "completed" "The kernel path's other half: the source rewritten on the way out.";
    Whole = Again "whole" "A fragment of a datagram that is whole, on its way back to where it came from.";
    Admitted = Again "admitted" "Admitted by an earlier hook, nothing left to rewrite.";

    SpoofedSource = Drop "spoofed-source" "A source that is not the sender's: from a container another endpoint's; from outside the host's or a container's, or one to which no route leads back.";
    ForeignSource = Drop "foreign-source" "A container's packet with a source outside of its network.";
    SpoofedNeighbour = Drop "spoofed-neighbour" "A container's frame with another hardware address, ARP or neighbour discovery in another's name, or what only routers and DHCP servers send.";
    DhcpServer = Drop "dhcp-server" "A container's answer as a DHCP server.";
    OtherFrame = Drop "other-frame" "A container's frame with a VLAN tag, an EtherType or a group address that its network does not allow.";
    InvalidHeader = Drop "invalid-header" "A container's packet without a valid network header, or without a valid transport header where it would have to be translated.";
    Loopback = Drop "loopback" "127.0.0.0/8 on a wire.";
    Isolated = Drop "isolated" "From one Docker network to another one.";
    Internal = Drop "internal" "Out of, or into, an internal network.";
    NoIpv6 = Drop "no-ipv6" "IPv6 from or to a container whose network has none.";
    Ipv6Header = Drop "ipv6-header" "IPv6 whose headers cannot be read to their end: out of a container, or for the host where lists of clients have to know the port.";
    Ipv6Forward = Drop "ipv6-forward" "IPv6 of a container that the host would forward: containers reach their own network and the host only.";
    PeerBlocked = Drop "peer-blocked" "Between containers of a network without inter-container communication.";
    DirectRouting = Drop "direct-routing" "From outside straight to a container's address.";
    Policy = Drop "policy" "From a client that the list of a published port or a network keeps out.";
    Untranslated = Drop "untranslated" "The last guard: a container's packet was about to leave that no hook had let out.";
    Unprotected = Drop "unprotected" "Translated, for a destination to which an IPsec policy demands protection that the packet has not.";
    UnknownNetwork = Drop "unknown-network" "Forwarded from or to a device that the agent does not know: of a network made while it is away, perhaps.";
    Fragment = Drop "fragment" "A fragment that would have to be translated and cannot be: its datagram has no ports, or is SCTP whose ports change, or nobody puts it together.";
    Protocol = Drop "protocol" "DCCP, UDP-Lite, or ICMP that is neither a query nor an error, and would have to be translated.";
    IcmpStray = Drop "icmp-stray" "An ICMP error about no flow, out of a container, or one that does not fit its flow.";
    NoFlow = Drop "no-flow" "TCP or SCTP that neither belongs to a flow nor may open one.";
    TcpState = Drop "tcp-state" "TCP that does not fit its flow's state.";
    TcpWindow = Drop "tcp-window" "TCP whose sequence numbers lie outside of its connection's windows.";
    TableFull = Drop "table-full" "No flow record is free.";
    FlowQuota = Drop "flow-quota" "The container has as many flows open as it may.";
    FlowRate = Drop "flow-rate" "The container opens flows faster than it may.";
    FragmentQuota = Drop "fragment-quota" "The container has as much in incomplete datagrams as it may.";
    PortsExhausted = Drop "ports-exhausted" "No port is free for a translation, or the protocol has none and the remote is another's.";
    NoEndpoint = Drop "no-endpoint" "A published port whose container is not there.";
    TargetGone = Drop "target-gone" "The container's device has gone.";
    RouteMoved = Drop "route-moved" "The way out has another source address now: the flow has ended.";
    FlowGone = Drop "flow-gone" "The flow ended while its packet was at hand.";
    DeviceUnknown = Drop "device-unknown" "Would leave by a device that is not hooked yet.";
    NoSource = Drop "no-source" "The outgoing device has no address to masquerade with.";
}

impl Reason {
    /// Reasons that something is used up: a container is told so (RFC 5508 REQ-8), and the
    /// administrator too.
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
