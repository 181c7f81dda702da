//! What the router counts, at one moment, in the words of `GET /api/stats`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::conflation::{Conflation, Conflations};
use super::metrics::{ChannelMetrics, Metrics, ProtocolMetrics, snapshot};

/// Counts by name.
pub type Tally = BTreeMap<&'static str, u64>;

/// Everything that is counted here.
#[derive(Debug, Serialize)]
pub struct Counted {
    /// All channels together.
    pub channels: ChannelsCounted,
    /// By pattern.
    pub patterns: BTreeMap<Arc<str>, PatternCounted>,
    /// By name.
    pub protocols: BTreeMap<Arc<str>, ProtocolCounted>,
    /// By name.
    pub routes: BTreeMap<Arc<str>, RouteCounted>,
    /// By name.
    pub sources: BTreeMap<Arc<str>, SourceCounted>,
}

/// What passed through all channels.
#[derive(Debug, Serialize)]
pub struct ChannelsCounted {
    /// Events published.
    pub published: u64,
    /// Deliveries: events times receivers.
    pub delivered: u64,
    /// Events that did not reach their receivers, by reason.
    pub dropped: Tally,
    /// Per second, over the last ten.
    pub rates: ChannelRates,
}

/// Per second, over the last ten.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChannelRates {
    /// Events published.
    pub published: f64,
    /// Deliveries.
    pub delivered: f64,
}

/// What passed through the channels of a pattern.
#[derive(Debug, Serialize, ToSchema)]
pub struct PatternCounted {
    /// Events published.
    pub published: u64,
    /// Deliveries: events times receivers.
    pub delivered: u64,
    /// Bytes of the published data.
    pub bytes: u64,
    /// Messages that slow clients did not get as they were published.
    pub slow: SlowCounted,
}

/// Messages that slow clients did not get as they were published, by what the channel's `on_slow` did with them.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlowCounted {
    /// Waiting messages that were dropped to make room.
    pub dropped_oldest: u64,
    /// New messages that were dropped because there was no room.
    pub dropped_newest: u64,
    /// Messages that a newer one replaced.
    pub superseded: u64,
    /// Messages that were merged with the one before them.
    pub merged: u64,
}

impl From<Conflations> for SlowCounted {
    fn from(conflations: Conflations) -> Self {
        Self {
            dropped_oldest: conflations.get(Conflation::DroppedOldest),
            dropped_newest: conflations.get(Conflation::DroppedNewest),
            superseded: conflations.get(Conflation::Superseded),
            merged: conflations.get(Conflation::Merged),
        }
    }
}

/// What passed through a protocol.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolCounted {
    /// Open connections.
    pub connections: u64,
    /// Connections opened.
    pub connections_total: u64,
    /// Connections refused.
    pub refused: u64,
    /// Messages received.
    pub messages_in: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Messages per second, over the last ten.
    pub rates: MessageRates,
    /// Messages that caused a fault, by code.
    #[schema(example = json!({ "rate_limited": 3 }))]
    pub faults: Tally,
    /// Connections that ended, by cause.
    #[schema(example = json!({ "by_client": 12 }))]
    pub closes: Tally,
}

/// Messages per second, over the last ten.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageRates {
    /// From clients.
    pub r#in: f64,
    /// To clients.
    pub out: f64,
}

/// What passed through a row.
#[derive(Debug, Serialize, ToSchema)]
pub struct RouteCounted {
    /// Messages that reached it.
    pub calls: u64,
    /// Those of them that caused a fault.
    pub faults: u64,
}

/// What a source made.
#[derive(Debug, Serialize, ToSchema)]
pub struct SourceCounted {
    /// Events.
    pub events: u64,
    /// Those of them that caused a fault.
    pub faults: u64,
}

impl Metrics {
    /// Everything that is counted, now.
    pub fn counted(&self) -> Counted {
        Counted {
            channels: channels(&self.channels),
            patterns: by_name(snapshot(&self.patterns), |p| PatternCounted {
                published: p.published.get(),
                delivered: p.delivered.get(),
                bytes: p.bytes.get(),
                slow: p.conflations.get().into(),
            }),
            protocols: by_name(snapshot(&self.protocols), protocol),
            routes: by_name(snapshot(&self.routes), |r| RouteCounted { calls: r.calls.get(), faults: r.faults.get() }),
            sources: by_name(snapshot(&self.sources), |s| SourceCounted { events: s.events.get(), faults: s.faults.get() }),
        }
    }
}

fn channels(all: &ChannelMetrics) -> ChannelsCounted {
    let rate = all.rate();
    ChannelsCounted {
        published: all.published.get(),
        delivered: all.delivered.get(),
        dropped: all.dropped().collect(),
        rates: ChannelRates { published: tenth(rate.r#in), delivered: tenth(rate.out) },
    }
}

fn protocol(counted: &ProtocolMetrics) -> ProtocolCounted {
    let rate = counted.rate();
    ProtocolCounted {
        connections: counted.connections.get(),
        connections_total: counted.connections_total.get(),
        refused: counted.refused.get(),
        messages_in: counted.messages_in.get(),
        messages_out: counted.messages_out.get(),
        bytes_in: counted.bytes_in.get(),
        bytes_out: counted.bytes_out.get(),
        rates: MessageRates { r#in: tenth(rate.r#in), out: tenth(rate.out) },
        faults: counted.faults().filter(|(_, n)| *n > 0).collect(),
        closes: counted.closes().filter(|(_, n)| *n > 0).collect(),
    }
}

fn by_name<T, C>(objects: Vec<(Arc<str>, Arc<T>)>, show: impl Fn(&T) -> C) -> BTreeMap<Arc<str>, C> {
    objects.into_iter().map(|(name, object)| (name, show(&object))).collect()
}

fn tenth(rate: f64) -> f64 {
    (rate * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Now;

    #[test]
    fn totals_and_rates_are_shown_and_objects_outlive_a_reload() {
        let start = Now::read();
        let metrics = Metrics::new(start);
        metrics.protocol("agent").messages_in.add(5);
        metrics.route("agent.messages._").calls.inc();
        metrics.source("bus").events.add(2);
        metrics.tick(start);
        metrics.protocol("agent").messages_in.add(20);
        metrics.channels().delivered.add(30);
        let later = Now { instant: start.instant + Duration::from_secs(10), ..start };
        metrics.tick(later);
        let json = serde_json::to_value(metrics.counted()).unwrap();
        assert_eq!(metrics.uptime_s(later), 10);
        assert_eq!(json["protocols"]["agent"]["messagesIn"], 25);
        assert_eq!(json["protocols"]["agent"]["rates"]["in"], 2.0);
        assert_eq!(json["channels"]["rates"]["delivered"], 3.0);
        assert_eq!(json["channels"]["dropped"]["outbox_full"], 0);
        assert_eq!(json["routes"]["agent.messages._"]["calls"], 1);
        assert_eq!(json["sources"]["bus"]["events"], 2);
    }
}
