//! What may happen to an event for a client whose socket accepts nothing: how soon it is written, and whether it may be dropped,
//! replaced or joined. Made once for all receivers of the event, and only if there is something to say.

use std::sync::Arc;

use crate::model::event::NewEvent;
use crate::model::{Event, Json, Priority, json};
use crate::telemetry::conflation::{Conflation, ConflationCounters};
use crate::telemetry::metrics::{ChannelMetrics, DropReason, PatternMetrics};

/// The most data that joined neighbours may have together. Each joining writes all of it again.
const CONCAT_BYTES_MAX: usize = 8 << 10;

/// The subscription that a message is for, as its connection knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionId {
    /// Unique while the process runs; a subscription that is made again has a new one.
    pub number: u64,
    /// Whether it is given positions: then it gets events in the order of their offsets, whatever their priority.
    pub positioned: bool,
}

/// What may happen to a message that waits.
#[derive(Debug)]
pub enum Overflow {
    /// It is written, or the connection ends.
    Kept,
    /// If there is no room, the oldest is dropped.
    DropOldest,
    /// If there is no room, the newest is dropped.
    DropNewest,
    /// A message with the same key replaces it.
    Latest(Box<str>),
    /// The text at this path of the event's data is joined with its neighbour's.
    Joined(Arc<Event>, Box<[Box<str>]>),
}

/// Where its outcome is counted.
#[derive(Debug, Clone)]
pub struct Counting {
    /// Of the channel.
    pub channel: Arc<ConflationCounters>,
    /// Of its pattern.
    pub pattern: Arc<PatternMetrics>,
    /// Of all channels.
    pub all: Arc<ChannelMetrics>,
}

/// See the module. An event without a policy has medium priority and is kept.
#[derive(Debug)]
pub struct DeliveryPolicy {
    /// How soon it is written.
    pub priority: Priority,
    /// What else may happen to it.
    pub overflow: Overflow,
    /// Its offset, if its channel has a history: then it can be read from the log.
    pub kept_at: Option<u64>,
    /// `None` outside channels.
    pub counting: Option<Counting>,
}

impl DeliveryPolicy {
    /// Bytes that it takes while it waits, besides what is written.
    pub(super) fn cost_bytes(&self) -> usize {
        match &self.overflow {
            Overflow::Joined(event, _) => event.cost_bytes(),
            Overflow::Latest(key) => key.len(),
            Overflow::Kept | Overflow::DropOldest | Overflow::DropNewest => 0,
        }
    }

    pub(super) fn is_droppable(&self) -> bool {
        matches!(self.overflow, Overflow::DropOldest | Overflow::DropNewest)
    }

    /// Where a subscription that does not get it continues from the log: after this offset.
    pub(super) fn recoverable(&self, subscription: SubscriptionId) -> Option<u64> {
        self.kept_at.filter(|_| subscription.positioned && self.is_droppable()).map(|offset| offset - 1)
    }

    pub(super) fn count(&self, conflation: Conflation) {
        let Some(counting) = &self.counting else { return };
        counting.channel.count(conflation);
        counting.pattern.conflations.count(conflation);
        if conflation.is_drop() {
            counting.all.drop_one(DropReason::SlowClient);
        }
    }

    /// Both as one event with the offset of the later one, if they differ only in one text of their data.
    pub(in crate::hub) fn joined_with(&self, next: &DeliveryPolicy) -> Option<DeliveryPolicy> {
        let (Overflow::Joined(before, path), Overflow::Joined(after, _)) = (&self.overflow, &next.overflow) else { return None };
        let (old, new) = (&before.new, &after.new);
        let alike = self.priority == next.priority
            && old.kind == new.kind
            && old.metadata == new.metadata
            && (Arc::ptr_eq(&old.origin, &new.origin) || old.origin == new.origin);
        if !alike || old.data.as_str().len() + new.data.as_str().len() > CONCAT_BYTES_MAX {
            return None;
        }
        let data = Json::trusted(joined(old.data.as_str(), new.data.as_str(), path)?);
        let event = Event { new: NewEvent { data, ..new.clone() }, ..(**after).clone() };
        let overflow = Overflow::Joined(Arc::new(event), path.clone());
        Some(DeliveryPolicy { priority: next.priority, overflow, kept_at: next.kept_at, counting: next.counting.clone() })
    }
}

/// Two values that are the same except for the text at a path, with both texts joined.
fn joined(before: &str, after: &str, path: &[Box<str>]) -> Option<String> {
    let Some((step, rest)) = path.split_first() else {
        // Escapes stay whole: the texts are joined as they are written.
        let (first, second) = (before.strip_suffix('"')?, after.strip_prefix('"')?);
        return first.starts_with('"').then(|| format!("{first}{second}"));
    };
    let (mut olds, mut news) = (json::members(before), json::members(after));
    let (mut out, mut found) = (String::with_capacity(before.len() + after.len()), false);
    loop {
        let ((key, old), (same, new)) = match (olds.next(), news.next()) {
            (Some(old), Some(new)) => (old, new),
            (None, None) => break,
            _ => return None,
        };
        if key != same {
            return None;
        }
        out.push(if out.is_empty() { '{' } else { ',' });
        out.push_str(key);
        out.push(':');
        if json::key_is(key, step) {
            out.push_str(&joined(old, new, rest)?);
            found = true;
        } else if old == new {
            out.push_str(old);
        } else {
            return None;
        }
    }
    out.push('}');
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(before: &str, after: &str, path: &str) -> Option<String> {
        joined(before, after, &path.split('.').map(Box::from).collect::<Vec<_>>())
    }

    #[test]
    fn texts_are_joined_where_all_else_is_equal() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(join(r#"{"run":1,"delta":"Hel"}"#, r#"{"run":1,"delta":"lo"}"#, "delta"), some(r#"{"run":1,"delta":"Hello"}"#));
        assert_eq!(join(r#"{"a":{"t":"x\n"},"b":2}"#, r#"{"a":{"t":"\"y"},"b":2}"#, "a.t"), some(r#"{"a":{"t":"x\n\"y"},"b":2}"#));
        assert_eq!(join(r#"{"t":"\ud83d"}"#, r#"{"t":"\ude00"}"#, "t"), some(r#"{"t":"\ud83d\ude00"}"#));
        assert_eq!(join(r#"{"t":""}"#, r#"{"t":""}"#, "t"), some(r#"{"t":""}"#));
        for (before, after) in [
            (r#"{"run":1,"t":"a"}"#, r#"{"run":2,"t":"b"}"#),
            (r#"{"t":"a"}"#, r#"{"t":"b","last":true}"#),
            (r#"{"t":"a"}"#, r#"{"t":1}"#),
            (r#"{"t":1}"#, r#"{"t":"a"}"#),
            (r#"{"x":"a"}"#, r#"{"x":"a"}"#),
            (r#""a""#, r#""b""#),
            ("{}", "{}"),
        ] {
            assert_eq!(join(before, after, "t"), None, "{before} {after}");
        }
    }
}
