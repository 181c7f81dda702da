//! Times differ from run to run; that they are times does not.

use std::time::{Duration, SystemTime};

use serde_json::Value;

/// What stands in place of a time of these minutes, written `2024-01-01T00:00:00.000Z`.
pub const SOME_TIME: &str = "<iso>";

/// The value with every time of these minutes replaced. Anything else, older times too, stays and can be compared.
pub fn shaped(value: Value) -> Value {
    match value {
        Value::String(text) if is_recent_time(&text) => SOME_TIME.into(),
        Value::Array(items) => items.into_iter().map(shaped).collect(),
        Value::Object(members) => members.into_iter().map(|(name, value)| (name, shaped(value))).collect(),
        other => other,
    }
}

fn is_recent_time(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00.000Z"
        && humantime::parse_rfc3339(text).is_ok_and(|time| {
            let now = SystemTime::now();
            now.duration_since(time).or_else(|_| time.duration_since(now)).is_ok_and(|apart| apart < Duration::from_secs(300))
        })
}
