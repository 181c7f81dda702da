//! One row of the log as an event.

use bytestring::ByteString;
use uuid::Uuid;

use super::StoreError;
use super::read::Columns;
use crate::model::event::{Event, NewEvent, Origin};
use crate::model::{ChannelName, Json};

/// What [`event`] reads of `events e`, in this order.
macro_rules! event_columns {
    () => {
        "e.id, e.\"offset\", e.epoch, e.uuid, e.type, e.data, e.time_ms, e.source, e.client, e.\"user\", e.session, e.metadata"
    };
}
pub(super) const EVENT_COLUMNS: &str = event_columns!();

/// The same, and what [`name`] reads.
pub(super) const COLUMNS: &str = concat!(event_columns!(), ", (SELECT c.name FROM channels c WHERE c.id = e.channel)");

/// The name of the row's channel.
pub(super) fn name(row: &dyn Columns) -> Result<ChannelName, StoreError> {
    ChannelName::parse(row.word(12)?).ok_or(StoreError::BadRow(row.number(0)?))
}

/// The row of a channel.
pub(super) fn event(row: &dyn Columns, channel: ChannelName) -> Result<Event, StoreError> {
    let seq = row.number(0)?;
    Ok(Event {
        channel: Some(channel),
        offset: row.number(1)?.cast_unsigned(),
        epoch: row.number(2)?.cast_unsigned(),
        seq: seq.cast_unsigned(),
        new: NewEvent {
            id: row.bytes(3)?.and_then(|bytes| Uuid::from_slice(bytes).ok()).ok_or(StoreError::BadRow(seq))?,
            kind: ByteString::from(row.word(4)?),
            data: Json::trusted(row.word(5)?),
            time_ms: row.number(6)?,
            origin: Origin {
                source: row.word(7)?.into(),
                client: row.text(8)?.map(Into::into),
                user: row.text(9)?.map(Into::into),
                session: row.text(10)?.map(Into::into),
                address: None,
            }
            .into(),
            metadata: row.text(11)?.map(Json::trusted),
        },
    })
}
