//! Sources in the plan.

use std::sync::Arc;
use std::time::Duration;

use super::{Listen, Secret, Table, TlsPlan};
use crate::model::SourceLocation;
use crate::model::id::SourceId;
use crate::model::pattern::Pattern;
use crate::model::template::Template;
use crate::model::template::Text;

/// One entry of `sources:`.
#[derive(Debug)]
pub struct SourcePlan {
    /// Stands for its name.
    pub id: SourceId,
    /// Its name.
    pub name: Arc<str>,
    /// Its place in the routes file.
    pub at: SourceLocation,
    /// Where its events come from.
    pub kind: SourceKind,
    /// What each event type does. A source with `to:` alone has one row for all.
    pub messages: Table,
}

impl SourcePlan {
    /// Whether it goes on as it is under another configuration.
    pub fn goes_on(&self, sources: &[Arc<Self>]) -> bool {
        sources.iter().any(|other| {
            self.name == other.name
                && match (&self.kind, &other.kind) {
                    (SourceKind::Http { method, path, listen, .. }, SourceKind::Http { method: to, path: at, listen: on, .. }) => {
                        (method, path, listen) == (to, at, on)
                    }
                    (kind, others) => kind == others,
                }
        })
    }
}

/// Where a source's events come from.
#[derive(Debug, PartialEq)]
pub enum SourceKind {
    /// A timer. Nothing is made while the server stops.
    Every {
        /// Between two events.
        period: Duration,
        /// The event's type.
        kind: Text,
        /// The event's data.
        data: Template,
    },
    /// `http: "POST /path"`: a JSON body `{"type", "data"}`.
    Http {
        /// The method.
        method: Arc<str>,
        /// The path.
        path: Pattern,
        /// Address.
        listen: Listen,
        /// None: plain HTTP. All listeners on one address have the same.
        tls: Option<TlsPlan>,
        /// Allowed origins, besides no origin, the same origin and loopback ones.
        origins: Vec<String>,
        /// The bearer token that callers must send, if any.
        token: Option<Secret>,
    },
}
