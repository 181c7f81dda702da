//! What the log promises, held against the running binary: crashes, faults, retention, resuming. On both databases.

mod crash;
mod faults;
mod resume;
mod retention;

use serde_json::Value;

use crate::support::Server;

/// An event as the log has it: where it stands, and who wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    offset: u64,
    epoch: String,
    by: String,
    n: u64,
}

impl Entry {
    /// From an event as REST shows it, or as the tests' own protocols deliver it.
    fn read(event: &Value) -> Self {
        let data = event.get("data").unwrap_or(event);
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{event}")).to_owned();
        let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{event}"));
        Self { offset: number(&event["offset"]), epoch: text(&event["epoch"]), by: text(&data["by"]), n: number(&data["n"]) }
    }

    /// What names it wherever it stands.
    fn name(&self) -> (&str, u64) {
        (&self.by, self.n)
    }
}

/// What the log has of a channel beyond an offset, oldest first.
async fn log_beyond(server: &Server, channel: &str, offset: u64) -> Vec<Entry> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = server.get(&format!("/api/history?channel={channel}&limit=1000{cursor}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page: Value = serde_json::from_str(&answer.body).unwrap();
        let events = page["events"].as_array().unwrap().iter().map(Entry::read);
        found.extend(events.filter(|entry| entry.offset > offset));
        match page["next"].as_str() {
            Some(next) if found.last().is_none_or(|oldest| oldest.offset > offset + 1) => cursor = format!("&cursor={next}"),
            _ => break,
        }
    }
    found.reverse();
    found
}
