// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line, which is docker-proxy's.

use std::fmt;
use std::str::FromStr;

use forwarder_protocol::Proto;
use forwarder_protocol::shim::Binding;

/// What dockerd requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Args {
    /// The port to publish.
    pub(crate) binding: Binding,
    /// Whether dockerd (28 and later) passes a bound socket.
    pub(crate) listen_fd: bool,
    /// The arguments as they came, for docker-proxy.
    pub(crate) raw: Vec<String>,
}

impl Args {
    /// Parses `-name value`, with one dash or two, also `-name=value`, as Go's flag package does.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let raw: Vec<String> = arguments.collect();
        let (mut proto, mut host_ip, mut host_port) = (None, None, None);
        let (mut container_ip, mut container_port, mut listen_fd) = (None, None, false);
        let mut words = raw.iter();
        while let Some(word) = words.next() {
            let name = word.trim_start_matches('-');
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (name, None),
            };
            if name == "use-listen-fd" {
                listen_fd = value != Some("false");
                continue;
            }
            let place = match name {
                "proto" => &mut proto,
                "host-ip" => &mut host_ip,
                "host-port" => &mut host_port,
                "container-ip" => &mut container_ip,
                "container-port" => &mut container_port,
                _ => return Err(format!("unknown argument {word}")),
            };
            let value = value.or_else(|| words.next().map(String::as_str));
            *place = Some(value.ok_or_else(|| format!("{word} needs a value"))?);
        }
        Ok(Self {
            binding: Binding {
                proto: read("-proto", proto)?,
                host_ip: read("-host-ip", host_ip)?,
                host_port: read("-host-port", host_port)?,
                container_ip: read("-container-ip", container_ip)?,
                container_port: read("-container-port", container_port)?,
                orphan: false,
            },
            listen_fd,
            raw,
        })
    }

    /// Whether the agent can serve the port. Docker's own docker-proxy serves the others.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.binding.proto, Proto::Tcp | Proto::Udp)
            && self.binding.host_ip.is_ipv4()
            && self.binding.container_ip.is_ipv4()
    }
}

impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.binding.host().fmt(f)
    }
}

fn read<T: FromStr>(name: &str, value: Option<&str>) -> Result<T, String> {
    let value = value.ok_or_else(|| {
        format!("{name} is missing: dockerd starts this program (userland-proxy-path)")
    })?;
    value
        .parse()
        .map_err(|_| format!("{name} cannot be {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    const TWENTY: &str =
        "-proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80";

    #[test]
    fn dockerd_arguments_are_parsed() {
        let args = parse(TWENTY).unwrap();
        assert_eq!(args.to_string(), "0.0.0.0:8080/tcp");
        assert!(args.is_ours() && !args.listen_fd);
        assert_eq!(args.binding.container_ip.to_string(), "172.17.0.2");
        assert_eq!(args.binding.container_port, 80);
        let newer = parse(&format!("{TWENTY} -use-listen-fd")).unwrap();
        assert!(newer.listen_fd);
        let equals = TWENTY
            .replace(" 8080", "=8080")
            .replace("-proto", "--proto");
        assert_eq!(parse(&equals).unwrap().binding.host_port, 8080);
    }

    #[test]
    fn other_families_and_sctp_are_not_served() {
        for (what, by) in [
            ("0.0.0.0", "::"),
            ("172.17.0.2", "fd00::2"),
            ("tcp", "sctp"),
        ] {
            assert!(!parse(&TWENTY.replace(what, by)).unwrap().is_ours(), "{by}");
        }
    }

    #[test]
    fn error_names_the_wrong_argument() {
        for (line, why) in [
            (
                "",
                "-proto is missing: dockerd starts this program (userland-proxy-path)",
            ),
            ("-proto", "-proto needs a value"),
            ("-speed 3", "unknown argument -speed"),
            ("-proto tcp -host-ip x", "-host-ip cannot be x"),
        ] {
            assert_eq!(parse(line).unwrap_err(), why, "{line}");
        }
    }
}
