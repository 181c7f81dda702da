//! `tls:` of a protocol, an HTTP source or `api`, and that all on one address have the same.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::certificate::{self, Which};
use super::codes;
use super::diagnostic::Diagnostic;
use super::fields::{Collected, Fields, elsewhere};
use super::node::Node;
use super::plan::{Listen, SourceSpan, TlsPlan};
use super::values;

/// `tls: {cert, key}`, or none. The outer None: it is broken, so that nobody knows.
pub(super) fn tls(all: &Collected, fields: &mut Fields<'_>) -> Option<Option<TlsPlan>> {
    fields.get("tls").map_or(Some(None), |node| pair(all, node))
}

/// Both empty: none, as if they were not there.
fn pair(all: &Collected, node: &Node) -> Option<Option<TlsPlan>> {
    let mut fields = Fields::of(all, node, "`tls`")?;
    let written = fields.has("cert") && fields.has("key");
    let empty = fields.get("cert").is_none() && fields.get("key").is_none();
    if written && empty {
        return fields.finish().then_some(None);
    }
    let (cert_at, key_at) = (fields.need("cert"), fields.need("key"));
    let path = |node: Option<&Node>| node.and_then(|node| path(all, node));
    let (cert, key) = (path(cert_at), path(key_at));
    if !fields.finish() {
        return None;
    }
    let plan = TlsPlan { cert: cert?, key: key? };
    if let Err(unsound) = certificate::read(&plan) {
        let at = if unsound.which == Which::Certificate { cert_at? } else { key_at? };
        let told = Diagnostic::new(codes::TLS, at.span.clone(), unsound.why);
        all.report(match unsound.hint {
            Some(hint) => told.hint(hint),
            None => told,
        });
    }
    Some(Some(plan))
}

/// A path, from the folder of the file it stands in.
fn path(all: &Collected, node: &Node) -> Option<PathBuf> {
    let written = values::text(all, node)?;
    Some(Path::new(&*node.span.location.file).parent().unwrap_or(Path::new("")).join(written))
}

/// Which addresses use TLS, gathered while reading.
#[derive(Default)]
pub(super) struct Covers(Vec<Cover>);

struct Cover {
    listen: Listen,
    tls: Option<TlsPlan>,
    /// "the protocol `canvas`"
    owner: String,
    at: SourceSpan,
}

impl Covers {
    pub(super) fn add(&mut self, listen: &Listen, tls: Option<&TlsPlan>, owner: String, at: &SourceSpan) {
        self.0.push(Cover { listen: listen.clone(), tls: tls.cloned(), owner, at: at.clone() });
    }

    /// Reports whatever has not the same as the first on its address. Where the system chooses the port, each gets its own.
    pub(super) fn check(&self, all: &Collected) {
        let mut first_on: HashMap<&Listen, &Cover> = HashMap::new();
        for cover in self.0.iter().filter(|cover| cover.listen.port != 0) {
            let first = *first_on.entry(&cover.listen).or_insert(cover);
            if first.tls == cover.tls {
                continue;
            }
            let (one, other, listen) = (&cover.owner, &first.owner, &cover.listen);
            let message = match (&cover.tls, &first.tls) {
                (Some(_), Some(_)) => format!("{one} has another certificate or key on {listen} than {other}"),
                (Some(_), None) => format!("{one} has TLS on {listen}, and {other} has none"),
                (None, _) => format!("{one} has no TLS on {listen}, and {other} has"),
            };
            let hint = format!(
                "write the same `tls` on both, or give one another port; {} is {}",
                first.owner,
                elsewhere(&first.at.location, &cover.at)
            );
            all.report(Diagnostic::new(codes::TLS, cover.at.clone(), message).hint(hint));
        }
    }
}
