//! From "publish this there" to an event that may be published: the channel exists, the publisher is allowed, the data has
//! its final shape and matches the schema. Nothing is published here.

use std::sync::Arc;

use bytestring::ByteString;
use uuid::Uuid;

use crate::config::plan::{Audience, ChannelPlan};
use crate::model::event::{NewEvent, Origin};
use crate::model::fault::Flaw;
use crate::model::{ChannelName, Code, Fault, Json, Now, chance};
use crate::pipeline::effect::{EventEffect, Receivers};
use crate::pipeline::scope::Bindings;
use crate::routing::ChannelTable;

/// Something to be published, from any input.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// The event's type.
    pub kind: ByteString,
    /// Its data.
    pub data: Json,
    /// What is passed on beside it.
    pub metadata: Option<Json>,
    /// Who publishes.
    pub origin: Arc<Origin>,
    /// The id, if the publisher chose one.
    pub id: Option<Uuid>,
    /// A connection that must not get it.
    pub except: Option<u64>,
}

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A channel.
    Channel(String),
    /// One connection.
    Client(String),
    /// A user: the user's channel if there is one, otherwise all of the user's connections.
    User(String),
    /// A session, likewise.
    Session(String),
}

/// Checks a proposal. The resulting effect always succeeds, unless the store is full.
pub fn prepare(channels: &ChannelTable, to: &Destination, proposal: Proposal, now: Now) -> Result<EventEffect, Fault> {
    let through = |audience, principal: &str| channels.audience(audience, principal);
    let (name, receivers) = match to {
        Destination::Channel(name) => return to_channel(channels, name, proposal, now),
        Destination::Client(id) => (None, Receivers::Client(id.as_str().into())),
        Destination::User(user) => (through(Audience::User, user), Receivers::User(user.as_str().into())),
        Destination::Session(session) => (through(Audience::Session, session), Receivers::Session(session.as_str().into())),
    };
    match name {
        Some(name) => to_channel(channels, &name, proposal, now),
        None => Ok(EventEffect::Direct { receivers, except: proposal.except, event: event(proposal, now) }),
    }
}

/// Checks a proposal for a channel.
pub(super) fn to_channel(channels: &ChannelTable, name: &str, mut proposal: Proposal, now: Now) -> Result<EventEffect, Fault> {
    let (name, plan) = known(channels, name)?;
    if plan.publish.as_ref().is_some_and(|allowed| !allowed.contains(&proposal.origin.source)) {
        return Err(Fault::with(Code::Forbidden, format!("{} may not publish to {name}", proposal.origin.source)));
    }
    if let Some(template) = &plan.data {
        let bindings =
            Bindings { data: Some(&proposal.data), kind: Some(&proposal.kind), channel: Some((&name, &plan.pattern)), ..Bindings::at(now) };
        if let Some(text) = template.render(&bindings) {
            proposal.data = Json::trusted(text);
        }
    }
    check(&plan, &proposal)?;
    if plan.history.is_some() {
        proposal.data = proposal.data.detached();
        proposal.metadata = proposal.metadata.as_ref().map(Json::detached);
        proposal.kind = ByteString::from(&*proposal.kind);
    }
    Ok(EventEffect::Publish { except: proposal.except, event: event(proposal, now), channel: name, plan })
}

fn check(plan: &ChannelPlan, proposal: &Proposal) -> Result<(), Fault> {
    // Not every database can hold it as text.
    if proposal.kind.contains('\0') {
        return Err(Fault::with(Code::Invalid, "the type must not contain the character NUL"));
    }
    let Some((_, schema)) = plan.schemas.iter().find(|(glob, _)| glob.matches(&proposal.kind)) else { return Ok(()) };
    schema.check(&proposal.data).map_err(|flaws| {
        let flaws: Vec<Flaw> = flaws.into_iter().map(|flaw| Flaw { path: format!("/data{}", flaw.path), message: flaw.message }).collect();
        let mut fault = Fault::with(Code::Invalid, first_flaw(&flaws));
        fault.flaws = flaws;
        fault
    })
}

/// A sentence for the first of several flaws.
pub fn first_flaw(flaws: &[Flaw]) -> String {
    flaws.first().map_or_else(
        || Code::Invalid.default_message().to_owned(),
        |flaw| if flaw.path.is_empty() { flaw.message.clone() } else { format!("{}: {}", flaw.path, flaw.message) },
    )
}

/// The channel with this name, or a fault.
pub fn known(channels: &ChannelTable, name: &str) -> Result<(ChannelName, Arc<ChannelPlan>), Fault> {
    channels.resolve(name).ok_or_else(|| unknown(name))
}

/// The fault for a channel that does not exist or is not open to the sender: the same for both, so that it does not reveal
/// which.
pub fn unknown(name: &str) -> Fault {
    let shown = &name[..name.floor_char_boundary(crate::model::name::CHANNEL_BYTES_MAX)];
    Fault::new(Code::UnknownChannel).data(Json::of(&serde_json::json!({ "channel": shown })))
}

fn event(proposal: Proposal, now: Now) -> NewEvent {
    NewEvent {
        id: proposal.id.unwrap_or_else(|| chance::event_id(now.wall_ms)),
        kind: proposal.kind,
        data: proposal.data,
        time_ms: now.wall_ms,
        origin: proposal.origin,
        metadata: proposal.metadata.filter(|m| m.as_str() != "{}"),
    }
}
