// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parsing of the tools' output: sockperf, wrk and iperf3.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Returns the mean one-way latency of `sockperf ping-pong`, in µs.
pub(crate) fn sockperf(output: &str) -> Result<f64> {
    after(output, "Summary: Latency is ")
        .with_context(|| format!("sockperf gives no latency: {}", last_line(output)))
}

/// Returns the requests per second of wrk. Output with refused connections, timeouts or statuses
/// other than 2xx and 3xx is an error: it counts something else.
pub(crate) fn wrk(output: &str) -> Result<f64> {
    if let Some(line) = output.lines().find(|line| line.contains("Socket errors:")) {
        let [connect, timeout] = ["connect ", "timeout "].map(|kind| after(line, kind));
        ensure!((connect, timeout) == (Some(0.0), Some(0.0)), "wrk:{line}");
    }
    if let Some(line) = output.lines().find(|line| line.contains("Non-2xx")) {
        bail!("wrk:{line}");
    }
    after(output, "Requests/sec:")
        .with_context(|| format!("wrk gives no rate: {}", last_line(output)))
}

/// Returns the rate at which the receiver read iperf3's stream, in Gbit/s.
pub(crate) fn iperf3(json: &str) -> Result<f64> {
    let report: Value =
        serde_json::from_str(json).with_context(|| format!("iperf3 prints no JSON: {json}"))?;
    if let Some(error) = report.get("error") {
        bail!("iperf3: {error}");
    }
    let rate = report.pointer("/end/sum_received/bits_per_second");
    let rate = rate.and_then(Value::as_f64);
    Ok(rate.context("iperf3 gives no rate of the receiver")? / 1e9)
}

/// Returns the number that follows the first `label`.
fn after(text: &str, label: &str) -> Option<f64> {
    let (_, rest) = text.split_once(label)?;
    let word = rest.split_whitespace().next()?;
    word.trim_end_matches(',').parse().ok()
}

fn last_line(output: &str) -> &str {
    output.trim_end().lines().next_back().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockperf_gives_its_mean() {
        let output = "sockperf: \u{1b}[2;35m====> avg-latency=27.635 (std-dev=4.806)\u{1b}[0m\n\
                      sockperf: # dropped messages = 0; # duplicated messages = 0\n\
                      sockperf: Summary: Latency is 27.635 usec\n\
                      sockperf: ---> percentile 50.000 =   27.320\n";
        assert_eq!(sockperf(output).unwrap(), 27.635);
        assert!(sockperf("sockperf: ERROR: Can`t connect socket").is_err());
    }

    const WRK: &str = "Running 1s test @ http://198.18.1.1:8080/\n\
                       \x20 1 threads and 16 connections\n\
                       \x20 Thread Stats   Avg      Stdev     Max   +/- Stdev\n\
                       \x20   Latency   301.39us  247.84us   3.63ms   88.22%\n\
                       \x20 22946 requests in 1.10s, 3.17MB read\n";

    #[test]
    fn wrk_gives_its_rate() {
        let rate = "Requests/sec:  20848.12\nTransfer/sec:      2.88MB\n";
        assert_eq!(wrk(&format!("{WRK}{rate}")).unwrap(), 20848.12);
        assert!(wrk(WRK).is_err());
    }

    #[test]
    fn wrk_with_errors_is_an_error() {
        let with = |line| wrk(&format!("{WRK}  {line}\nRequests/sec:  100.00\n"));
        // The server closes connections as it was told: these are no errors.
        assert!(with("Socket errors: connect 0, read 3, write 0, timeout 0").is_ok());
        assert!(with("Socket errors: connect 16, read 0, write 0, timeout 0").is_err());
        assert!(with("Socket errors: connect 0, read 0, write 0, timeout 2").is_err());
        assert!(with("Non-2xx or 3xx responses: 7").is_err());
    }

    #[test]
    fn iperf3_gives_the_receivers_rate() {
        let json = r#"{"end": {"sum_sent": {"bits_per_second": 3e9},
                               "sum_received": {"bits_per_second": 25448813124.9}}}"#;
        assert!((iperf3(json).unwrap() - 25.448_813).abs() < 1e-6);
        let refused = r#"{"intervals": [], "end": {}, "error": "unable to connect"}"#;
        assert!(iperf3(refused).unwrap_err().to_string().contains("unable"));
        assert!(iperf3("iperf3: not found").is_err());
    }
}
