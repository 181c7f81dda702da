//! What a channel had after a position, in order.

use futures_util::TryStreamExt;
use sqlx::SqlitePool;

use super::{StoreError, history};
use crate::model::Event;
use crate::model::event::Epoch;

/// Events of one channel and stream behind an offset, oldest first, bounded in number and bytes; at least one where there is one.
pub(super) async fn after(
    db: &SqlitePool,
    channel: &str,
    epoch: Epoch,
    since: u64,
    events_max: usize,
    bytes_max: usize,
) -> Result<Vec<Event>, StoreError> {
    let sql = "SELECT e.\"offset\", e.id, c.name, e.\"offset\", e.epoch, e.uuid, e.type, e.data, e.time_ms, e.source, e.client, e.user, \
               e.session, e.metadata FROM channels c CROSS JOIN events e ON e.channel = c.id \
               WHERE c.name = $1 AND e.\"offset\" > $2 AND e.epoch = $3 ORDER BY e.\"offset\" LIMIT $4";
    let most = i64::try_from(events_max).unwrap_or(i64::MAX);
    let query = sqlx::query(sql).bind(channel).bind(since.cast_signed()).bind(epoch.cast_signed()).bind(most);
    let (mut rows, mut events, mut bytes) = (query.fetch(db), Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        let event = history::event(&row)?;
        bytes += event.weight();
        events.push(event);
        if bytes >= bytes_max {
            break;
        }
    }
    Ok(events)
}
