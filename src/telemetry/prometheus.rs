//! Numbers in Prometheus' text format, version 0.0.4.

use std::fmt::Write;
use std::sync::Arc;

use super::conflation::Conflation;
use super::durations::DurationsNow;
use super::metrics::{ChannelMetrics, PatternMetrics, ProtocolMetrics, RouteMetrics, SocketMetrics, SourceMetrics};

/// How a number changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows. Its name ends with `_total`.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts of what took no longer than each of some bounds. Its name ends with `_seconds`.
    Histogram,
}

/// How often something happened that takes time, and how long it took.
#[derive(Debug, Clone)]
pub struct Timed {
    /// Its name without the leading `tramline_`; it ends with `_seconds`.
    pub name: &'static str,
    /// What takes the time, in one line.
    pub help: &'static str,
    /// How long it took.
    pub took: DurationsNow,
}

/// One number from the caller. Numbers with the same name must follow each other.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its name without the leading `tramline_`, of small letters and underscores, with its unit.
    pub name: &'static str,
    /// What it is, in one line.
    pub help: &'static str,
    /// What it does.
    pub kind: Kind,
    /// Names and values of labels.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

/// Everything to show.
pub(super) struct Counted<'a> {
    pub(super) uptime_s: u64,
    pub(super) channels: &'a ChannelMetrics,
    pub(super) sockets: &'a SocketMetrics,
    pub(super) patterns: &'a [(Arc<str>, Arc<PatternMetrics>)],
    pub(super) protocols: &'a [(Arc<str>, Arc<ProtocolMetrics>)],
    pub(super) routes: &'a [(Arc<str>, Arc<RouteMetrics>)],
    pub(super) sources: &'a [(Arc<str>, Arc<SourceMetrics>)],
    pub(super) more: &'a [Sample],
    pub(super) timed: &'a [Timed],
}

pub(super) fn render(counted: &Counted<'_>) -> String {
    let mut out = String::with_capacity(4096);
    family(&mut out, "uptime_seconds", "Time since the start.", Kind::Gauge);
    line(&mut out, "uptime_seconds", &[], counted.uptime_s as f64);
    channels(&mut out, counted.channels);
    sockets(&mut out, counted.sockets);
    let counter = |name, help| (name, help, Kind::Counter);
    each(&mut out, counter("channel_published_total", "Events published, by the channel's pattern."), "pattern", counted.patterns, |p| {
        p.published.get()
    });
    each(&mut out, counter("channel_delivered_total", "Deliveries, by the channel's pattern."), "pattern", counted.patterns, |p| {
        p.delivered.get()
    });
    each(
        &mut out,
        counter("channel_published_bytes_total", "Bytes of published data, by the channel's pattern."),
        "pattern",
        counted.patterns,
        |p| p.bytes.get(),
    );
    conflations(&mut out, counted.patterns);
    protocols(&mut out, counted.protocols);
    each(&mut out, counter("route_calls_total", "Messages that reached a row."), "route", counted.routes, |r| r.calls.get());
    each(&mut out, counter("route_faults_total", "Faults of a row."), "route", counted.routes, |r| r.faults.get());
    each(&mut out, counter("source_events_total", "Events made by a source."), "source", counted.sources, |s| s.events.get());
    each(&mut out, counter("source_faults_total", "Faults of a source's events."), "source", counted.sources, |s| s.faults.get());
    let mut last = "";
    for sample in counted.more {
        if sample.name != last {
            family(&mut out, sample.name, sample.help, sample.kind);
            last = sample.name;
        }
        let labels: Vec<(&str, &str)> = sample.labels.iter().map(|(name, value)| (*name, &**value)).collect();
        line(&mut out, sample.name, &labels, sample.value);
    }
    counted.timed.iter().for_each(|timed| histogram(&mut out, timed));
    out
}

fn histogram(out: &mut String, Timed { name, help, took }: &Timed) {
    family(out, name, help, Kind::Histogram);
    for (bound, count) in took.up_to() {
        let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
        line(out, &format!("{name}_bucket"), &[("le", &bound)], count as f64);
    }
    line(out, &format!("{name}_sum"), &[], took.sum.as_secs_f64());
    line(out, &format!("{name}_count"), &[], took.count() as f64);
}

fn sockets(out: &mut String, sockets: &SocketMetrics) {
    for (name, help, value) in [
        ("sockets_refused_total", "Sockets closed because their address had as many as are allowed.", sockets.refused.get()),
        ("tls_handshakes_failed_total", "TLS handshakes that failed or took too long.", sockets.handshakes_failed.get()),
        ("tls_handshakes_waited_total", "TLS handshakes that waited for others to finish.", sockets.handshakes_waited.get()),
        ("certificates_read_total", "Changed certificates that were taken into use.", sockets.certificates_read.get()),
        ("certificates_invalid_total", "Changed certificates that could not be used.", sockets.certificates_invalid.get()),
    ] {
        family(out, name, help, Kind::Counter);
        line(out, name, &[], value as f64);
    }
}

fn channels(out: &mut String, channels: &ChannelMetrics) {
    for (name, help, value) in [
        ("events_published_total", "Events published to channels.", channels.published.get()),
        ("events_delivered_total", "Deliveries: events times receivers.", channels.delivered.get()),
    ] {
        family(out, name, help, Kind::Counter);
        line(out, name, &[], value as f64);
    }
    family(out, "events_dropped_total", "Events that did not reach their receivers, by reason.", Kind::Counter);
    for (reason, n) in channels.dropped() {
        line(out, "events_dropped_total", &[("reason", reason)], n as f64);
    }
}

fn conflations(out: &mut String, patterns: &[(Arc<str>, Arc<PatternMetrics>)]) {
    if patterns.is_empty() {
        return;
    }
    let name = "channel_slow_total";
    family(
        out,
        name,
        "Messages that slow clients did not get as they were published, by the channel's pattern and outcome.",
        Kind::Counter,
    );
    for (pattern, metrics) in patterns {
        let conflations = metrics.conflations.get();
        for conflation in Conflation::ALL {
            line(out, name, &[("pattern", pattern), ("outcome", conflation.as_str())], conflations.get(conflation) as f64);
        }
    }
}

fn protocols(out: &mut String, protocols: &[(Arc<str>, Arc<ProtocolMetrics>)]) {
    type Read = fn(&ProtocolMetrics) -> u64;
    let table: [(&str, &str, Kind, Read); 7] = [
        ("connections", "Open connections.", Kind::Gauge, |p| p.connections.get()),
        ("connections_total", "Connections opened.", Kind::Counter, |p| p.connections_total.get()),
        ("connections_refused_total", "Connections refused.", Kind::Counter, |p| p.refused.get()),
        ("messages_received_total", "Messages from clients.", Kind::Counter, |p| p.messages_in.get()),
        ("messages_sent_total", "Messages to clients.", Kind::Counter, |p| p.messages_out.get()),
        ("received_bytes_total", "Bytes from clients.", Kind::Counter, |p| p.bytes_in.get()),
        ("sent_bytes_total", "Bytes to clients.", Kind::Counter, |p| p.bytes_out.get()),
    ];
    for (name, help, kind, read) in table {
        each(out, (name, help, kind), "protocol", protocols, read);
    }
    if protocols.is_empty() {
        return;
    }
    family(out, "faults_total", "Messages that caused a fault, by code.", Kind::Counter);
    for (protocol, metrics) in protocols {
        metrics.faults().for_each(|(code, n)| line(out, "faults_total", &[("protocol", protocol), ("code", code)], n as f64));
    }
    family(out, "connections_closed_total", "Connections that ended, by cause.", Kind::Counter);
    for (protocol, metrics) in protocols {
        metrics
            .closes()
            .for_each(|(cause, n)| line(out, "connections_closed_total", &[("protocol", protocol), ("cause", cause)], n as f64));
    }
}

/// One family with a line for each object. None of them: no family.
fn each<T>(
    out: &mut String,
    (name, help, kind): (&str, &str, Kind),
    label: &str,
    objects: &[(Arc<str>, Arc<T>)],
    read: impl Fn(&T) -> u64,
) {
    if !objects.is_empty() {
        family(out, name, help, kind);
    }
    for (value, object) in objects {
        line(out, name, &[(label, value)], read(object) as f64);
    }
}

fn family(out: &mut String, name: &str, help: &str, kind: Kind) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    out.push_str(&format!("# HELP tramline_{name} {help}\n# TYPE tramline_{name} {kind}\n"));
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    out.push_str("tramline_");
    out.push_str(name);
    for (i, (label, text)) in labels.iter().enumerate() {
        out.push(if i == 0 { '{' } else { ',' });
        out.push_str(label);
        out.push_str("=\"");
        for c in text.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    if !labels.is_empty() {
        out.push('}');
    }
    // Writing to a String does not fail.
    if writeln!(out, " {value}").is_err() {
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;
    use crate::model::Now;
    use crate::model::fault::Code;
    use crate::telemetry::durations::Durations;
    use crate::telemetry::metrics::{DropReason, Metrics};

    #[test]
    fn what_is_shown_is_what_prometheus_reads() {
        let now = Now::read();
        let metrics = Metrics::new(now);
        metrics.protocol("canvas").fault(Code::RateLimited);
        metrics.protocol("agent").messages_in.add(1_000_000_000_000);
        metrics.route("canvas.messages.\"a\\b\nc\"").calls.inc();
        metrics.channels().drop_one(DropReason::Gone);
        let more = ["a", "b"].map(|plugin| Sample {
            name: "script_seconds_total",
            help: "Time in scripts.",
            kind: Kind::Counter,
            labels: vec![("plugin", plugin.to_owned())],
            value: 0.25,
        });
        let took = Durations::default();
        took.add(Duration::from_millis(3));
        let timed = Timed { name: "script_call_seconds", help: "Calls of scripts.", took: took.get() };
        let text = metrics.prometheus(now, &more, &[timed]);
        let (family, bucket) = ("# TYPE tramline_script_call_seconds histogram\n", "tramline_script_call_seconds_bucket");
        assert!(text.contains(&format!("{family}{bucket}{{le=\"0.0005\"}} 0\n")), "{text}");
        assert!(text.contains(&format!("{bucket}{{le=\"0.0025\"}} 0\n{bucket}{{le=\"0.005\"}} 1\n")), "{text}");
        let end = "{le=\"+Inf\"} 1\ntramline_script_call_seconds_sum 0.003\ntramline_script_call_seconds_count 1\n";
        assert!(text.ends_with(&format!("{bucket}{end}")), "{text}");
        assert!(text.contains("tramline_faults_total{protocol=\"canvas\",code=\"rate_limited\"} 1\n"));
        assert!(text.contains("tramline_messages_received_total{protocol=\"agent\"} 1000000000000\n"));
        assert!(text.contains("tramline_route_calls_total{route=\"canvas.messages.\\\"a\\\\b\\nc\\\"\"} 1\n"));
        assert!(text.contains("tramline_events_dropped_total{reason=\"gone\"} 1\n"));
        assert!(text.contains("# TYPE tramline_script_seconds_total counter\ntramline_script_seconds_total{plugin=\"a\"} 0.25\n"));

        // Every family is announced once, before its lines, which are together; no line appears twice.
        let line =
            regex::Regex::new(r#"^(tramline_[a-z_]+)(\{[a-z]+="([^"\\\n]|\\[\\"n])*"(,[a-z]+="([^"\\\n]|\\[\\"n])*")*\})? [0-9.]+$"#)
                .unwrap();
        let (mut announced, mut seen, mut current, mut is_histogram) = (HashSet::new(), HashSet::new(), String::new(), false);
        for text in text.lines() {
            if let Some(rest) = text.strip_prefix("# HELP ") {
                current = rest.split(' ').next().unwrap().to_owned();
                assert!(announced.insert(current.clone()), "{text}");
            } else if let Some(rest) = text.strip_prefix("# TYPE ") {
                assert_eq!(rest.split(' ').next().unwrap(), current);
                assert_eq!(rest.ends_with(" counter"), current.ends_with("_total"), "{text}");
                is_histogram = rest.ends_with(" histogram");
            } else {
                let name = &line.captures(text).expect(text)[1];
                let ends = ["_bucket", "_sum", "_count"];
                let name = ends.iter().find_map(|end| name.strip_suffix(end).filter(|_| is_histogram)).unwrap_or(name);
                assert_eq!(name, current);
                assert!(seen.insert(text.to_owned()), "{text}");
            }
        }
    }
}
