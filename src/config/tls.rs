//! `tls:` of a protocol, an HTTP source or `api`, and the check that all on one address use the same.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::certificate;
use super::codes;
use super::diagnostic::Diagnostic;
use super::fields::{Collected, Fields, elsewhere};
use super::node::Node;
use super::plan::{Listen, SourceSpan, TlsPlan};
use super::values;

/// What a `tls:` says.
pub(super) struct Tls {
    /// The files of the certificate and of its key.
    files: (PathBuf, PathBuf),
    /// None: they cannot be used.
    pub(super) plan: Option<TlsPlan>,
}

/// `tls: {cert, key}`, or none. The outer None means that it is not valid.
pub(super) fn tls(all: &Collected, fields: &mut Fields<'_>) -> Option<Option<Tls>> {
    fields.get("tls").map_or(Some(None), |node| pair(all, node))
}

/// Both empty: none, as if they were not there.
fn pair(all: &Collected, node: &Node) -> Option<Option<Tls>> {
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
    let files = (cert?, key?);
    let spans = [cert_at, key_at].map(|at| at.map_or(&node.span, |at| &at.span));
    let read = read(all, &files).map_err(|invalid| {
        let diagnostic = Diagnostic::new(codes::TLS, spans[invalid.which as usize].clone(), invalid.why);
        all.report(match invalid.hint {
            Some(hint) => diagnostic.hint(hint),
            None => diagnostic,
        });
    });
    let (cert, key) = files.clone();
    let plan = read.ok().map(|pair| TlsPlan { cert, key, at: spans.map(|span| span.location.clone()), pair });
    Some(Some(Tls { files, plan }))
}

/// Reads a pair once, so that all listeners with these files get the same one.
fn read(all: &Collected, files: &(PathBuf, PathBuf)) -> certificate::Read {
    let (cert, key) = files;
    let read = || {
        // Before they are read: if they change meanwhile, what is kept is what was there before.
        [cert, key].into_iter().for_each(|path| all.inputs.borrow_mut().look(path));
        certificate::read(cert, key)
    };
    all.certificates.borrow_mut().entry(files.clone()).or_insert_with(read).clone()
}

/// A path, relative to the folder of the file that contains it.
fn path(all: &Collected, node: &Node) -> Option<PathBuf> {
    let written = values::text(all, node)?;
    Some(Path::new(&*node.span.location.file).parent().unwrap_or(Path::new("")).join(written))
}

/// Which addresses use TLS, collected while reading.
#[derive(Default)]
pub(super) struct Covers(Vec<Cover>);

struct Cover {
    listen: Listen,
    /// The files of its certificate and key.
    tls: Option<(PathBuf, PathBuf)>,
    /// "the protocol `canvas`"
    owner: String,
    at: SourceSpan,
}

impl Covers {
    pub(super) fn add(&mut self, listen: &Listen, tls: Option<&Tls>, owner: String, at: &SourceSpan) {
        let tls = tls.map(|tls| tls.files.clone());
        self.0.push(Cover { listen: listen.clone(), tls, owner, at: at.clone() });
    }

    /// Reports every listener whose TLS differs from the first one on its address. With port 0 each gets an address of its own.
    pub(super) fn check(&self, all: &Collected) {
        let mut first_on: HashMap<&Listen, &Cover> = HashMap::new();
        for cover in self.0.iter().filter(|cover| cover.listen.port != 0) {
            let first = *first_on.entry(&cover.listen).or_insert(cover);
            if first.tls == cover.tls {
                continue;
            }
            let (one, other, listen) = (&cover.owner, &first.owner, &cover.listen);
            let message = match (&cover.tls, &first.tls) {
                (Some(_), Some(_)) => format!("{one} has a different certificate or key on {listen} than {other}"),
                (Some(_), None) => format!("{one} uses TLS on {listen}, but {other} does not"),
                (None, _) => format!("{one} does not use TLS on {listen}, but {other} does"),
            };
            let hint = format!(
                "write the same `tls` for both, or use another port for one; {} is {}",
                first.owner,
                elsewhere(&first.at.location, &cover.at)
            );
            all.report(Diagnostic::new(codes::TLS, cover.at.clone(), message).hint(hint));
        }
    }
}
