//! A transaction that consists of events of known channels, on SQLite: the first statement is sent together with the BEGIN and
//! the last with the COMMIT, and each text is prepared once. So most transactions are two round trips to SQLite's thread instead
//! of one for each statement; the round trips cost more than the work itself.
//!
//! It relies on `sqlx` for SQLite to prepare several statements of one text and to pass the parameters from each to the next.

use std::collections::HashMap;
use std::sync::LazyLock;

use sqlx::Sqlite;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;

use super::channels::Channels;
use super::fault::Fault;
use super::insert::{Span, bind_event, channels_conflict, channels_into, events_into, spans};
use super::known::{Channel, Known, Noted};
use super::link::Link;
use crate::model::Event;

/// The most rows of a statement that is the first or the last of a transaction. Every number up to this has its own text.
const EXACT: usize = 32;
/// Rows of the statements before the last one, largest first.
const CHUNKS: [usize; 3] = [512, 64, EXACT];

/// Texts by their number of rows minus one.
type Texts<const N: usize> = LazyLock<[String; N]>;

static FIRST: Texts<EXACT> = LazyLock::new(|| texts(concat!("BEGIN IMMEDIATE; ", channels_into!()), "(?,?,?,?,?)", channels_conflict!()));
static MORE_CHANNELS: Texts<EXACT> = LazyLock::new(|| texts(channels_into!(), "(?,?,?,?,?)", channels_conflict!()));
static LAST: Texts<EXACT> = LazyLock::new(|| texts(events_into!(), EVENT, "; COMMIT"));
static MORE_EVENTS: Texts<3> = LazyLock::new(|| CHUNKS.map(|n| format!("{}{}", events_into!(), vec![EVENT; n].join(","))));

/// The parameters of an event.
const EVENT: &str = "(?,?,?,?,?,?,?,?,?,?,?,?,?)";

type Sentence = Query<'static, Sqlite, SqliteArguments>;

fn texts(head: &str, row: &str, tail: &str) -> [String; EXACT] {
    std::array::from_fn(|index| format!("{head}{}{tail}", vec![row; index + 1].join(",")))
}

/// Events with the rows of their channels.
pub(super) struct Whole<'e> {
    rows: Vec<(i64, &'e Event)>,
    spans: Vec<(Span<'e>, Channel)>,
}

impl<'e> Whole<'e> {
    /// `None` if a channel is not known: then the database must assign its row.
    pub(super) fn of(events: &[&'e Event], known: &Known, policies: &dyn Channels) -> Option<Self> {
        let spans = spans(events, policies).into_iter().map(|span| known.get(span.name).map(|channel| (span, channel)));
        let spans: Vec<_> = spans.collect::<Option<_>>()?;
        let ids: HashMap<&str, i64> = spans.iter().map(|(span, channel)| (span.name.as_str(), channel.id)).collect();
        let rows: Vec<_> = events.iter().filter_map(|event| Some((*ids.get(event.channel.as_ref()?.as_str())?, *event))).collect();
        (!rows.is_empty()).then_some(Self { rows, spans })
    }

    /// Writes all of it or nothing. Returns the new state of the channels.
    pub(super) async fn write(&self, link: &mut Link) -> Result<Vec<Noted>, Fault> {
        let mut channels = self.spans.chunks(EXACT);
        let first = channels.next().unwrap_or_default();
        let mut open = link.begin_with(self.rows.len(), of_channels(&FIRST, first)).await?;
        let mut rest = &self.rows[..];
        for chunk in channels {
            open = link.go_on(open, of_channels(&MORE_CHANNELS, chunk)).await?;
        }
        for (index, size) in CHUNKS.into_iter().enumerate() {
            while rest.len() > size {
                let (chunk, after) = rest.split_at(size);
                open = link.go_on(open, of_events(&MORE_EVENTS[index], chunk)).await?;
                rest = after;
            }
        }
        link.end_with(open, of_events(&LAST[rest.len() - 1], rest)).await?;
        Ok(self.spans.iter().map(|(span, channel)| noted(span, channel)).collect())
    }
}

fn of_channels(texts: &'static [String; EXACT], spans: &[(Span<'_>, Channel)]) -> Sentence {
    let query = sqlx::query(texts[spans.len() - 1].as_str());
    spans.iter().fold(query, |query, (span, _)| span.bind(query))
}

fn of_events(text: &'static str, rows: &[(i64, &Event)]) -> Sentence {
    rows.iter().fold(sqlx::query(text), |query, (channel, event)| bind_event(query, *channel, event))
}

/// The channel's row after the statement.
fn noted(span: &Span<'_>, channel: &Channel) -> Noted {
    let (first, top) = (span.first.cast_unsigned(), span.top.cast_unsigned());
    Noted {
        name: span.name.clone(),
        id: channel.id,
        epoch: span.epoch.cast_unsigned(),
        top: top.max(channel.top),
        first: if first == channel.top + 1 { channel.first } else { first },
    }
}
