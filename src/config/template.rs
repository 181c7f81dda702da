//! From YAML to compiled templates and texts, and which references are allowed where.

use super::codes;
use super::diagnostic::Diagnostic;
use super::fields::{Collected, nearest};
use super::node::{Entry as YamlEntry, Node, Yaml};
use super::plan::SourceSpan;
use crate::model::json;
use crate::model::template::{Entry, Error, Reference, Root, Template, Text};

/// Which references have a value at one place of the language.
#[derive(Clone, Copy, Debug)]
pub(super) struct AllowedRefs {
    /// What a person calls the place: "in a row".
    pub(super) place: &'static str,
    pub(super) roots: &'static [Root],
    /// `$result` too.
    pub(super) result: bool,
    /// `$recovery` too.
    pub(super) recovery: bool,
}

impl AllowedRefs {
    const fn new(place: &'static str, roots: &'static [Root]) -> Self {
        Self { place, roots, result: false, recovery: false }
    }

    /// The same place after a function was called.
    pub(super) fn with_result(self, result: bool) -> Self {
        Self { result, ..self }
    }

    /// The same place after a subscription with a position was made.
    pub(super) fn with_recovery(self, recovery: bool) -> Self {
        Self { recovery, ..self }
    }

    /// A row of a protocol's `messages`.
    pub(super) const MESSAGE: AllowedRefs = AllowedRefs::new(
        "in a row",
        &[Root::Message, Root::Type, Root::Data, Root::Raw, Root::Conn, Root::Query, Root::Path, Root::Header, Root::Cookie],
    );
    /// Rows of a connection without a message: `open`, `close`, `every`, `idle`.
    pub(super) const CONNECTION: AllowedRefs =
        AllowedRefs::new("where there is no message", &[Root::Conn, Root::Query, Root::Path, Root::Header, Root::Cookie]);
    /// A connection that is being opened.
    pub(super) const REQUEST: AllowedRefs =
        AllowedRefs::new("before the connection is open", &[Root::Query, Root::Path, Root::Header, Root::Cookie]);
    /// A row of `http`.
    pub(super) const HTTP: AllowedRefs = AllowedRefs::new(
        "in an HTTP row",
        &[Root::Message, Root::Type, Root::Data, Root::Raw, Root::Query, Root::Path, Root::Header, Root::Cookie],
    );
    /// A row of a source.
    pub(super) const SOURCE: AllowedRefs = AllowedRefs::new("in a source", &[Root::Message, Root::Type, Root::Data]);
    /// A row of a source fed over HTTP.
    pub(super) const HTTP_SOURCE: AllowedRefs = AllowedRefs { place: "in a source", ..AllowedRefs::HTTP };
    /// What a source makes out of nothing.
    pub(super) const EMIT: AllowedRefs = AllowedRefs::new("in `emit`", &[]);
    /// `deliver`
    pub(super) const DELIVER: AllowedRefs = AllowedRefs::new("in `deliver`", &[Root::Event, Root::Sub, Root::Conn]);
    /// `latest_by` of a channel's `on_slow`.
    pub(super) const EVENT: AllowedRefs = AllowedRefs::new("in `latest_by`", &[Root::Event]);
    /// `when` of a protocol's `batch`.
    pub(super) const BATCHED: AllowedRefs = AllowedRefs { place: "of `batch`", ..AllowedRefs::CONNECTION };
    /// `as` of a protocol's `batch`.
    pub(super) const BATCH: AllowedRefs = AllowedRefs::new("in `batch`", &[Root::Messages]);
    /// `data` of a channel.
    pub(super) const CHANNEL: AllowedRefs = AllowedRefs::new("in a channel's `data`", &[Root::Type, Root::Data, Root::Channel]);
    /// `error` and `errors`.
    pub(super) const ERROR: AllowedRefs = AllowedRefs::new(
        "in `error`",
        &[Root::Error, Root::Message, Root::Type, Root::Data, Root::Raw, Root::Conn, Root::Query, Root::Path, Root::Header, Root::Cookie],
    );

    /// Whether a root has a value here. `$now`, `$uuid` and the like have one everywhere.
    pub(super) fn has(self, root: Root) -> bool {
        matches!(root, Root::Now | Root::NowMs | Root::Uuid | Root::Random)
            || (root == Root::Result && self.result)
            || (root == Root::Recovery && self.recovery)
            || self.roots.contains(&root)
    }

    /// What there is, for a hint.
    pub(super) fn known(self) -> String {
        names(|root| self.has(root))
    }
}

/// Roots as they are written, for a hint.
pub(super) fn names(has: impl Fn(Root) -> bool) -> String {
    let names = Root::ALL.iter().filter(|(_, root)| has(*root));
    names.map(|(name, root)| if *root == Root::Message { "`$.`".into() } else { format!("`${name}`") }).collect::<Vec<_>>().join(", ")
}

/// Compiles any value. What holds no reference becomes one constant.
pub(super) fn template(all: &Collected, node: &Node, allowed: AllowedRefs) -> Option<Template> {
    Some(match &node.value {
        Yaml::Null => Template::Constant("null".into()),
        Yaml::Broken => return None,
        Yaml::Bool(is) => Template::constant(&(*is).into()),
        Yaml::Number(_) => match node.to_json() {
            Ok(number) => Template::constant(&number),
            Err(span) => return all.fail(codes::TYPE, &span, "JSON cannot represent this number"),
        },
        Yaml::Text(written) if Reference::is_meant(written) => Template::Value(reference(all, written, &node.span, allowed)?),
        Yaml::Text(_) => {
            let text = text(all, node, allowed)?;
            text.as_constant().map(|constant| Template::constant(&constant.into())).unwrap_or(Template::Text(text))
        }
        Yaml::List(items) => {
            let compiled: Vec<Option<Template>> = items.iter().map(|item| template(all, item, allowed)).collect();
            let compiled: Vec<Template> = compiled.into_iter().collect::<Option<_>>()?;
            match constants(compiled.iter()) {
                Some(constants) => Template::Constant(format!("[{}]", constants.join(",")).into()),
                None => Template::Array(compiled),
            }
        }
        Yaml::Map(entries) => object(all, entries, allowed)?,
        Yaml::Encoded(inner) => match template(all, inner, allowed)? {
            Template::Constant(text) => Template::constant(&(*text).into()),
            other => Template::Encoded(Box::new(other)),
        },
    })
}

fn object(all: &Collected, entries: &[YamlEntry], allowed: AllowedRefs) -> Option<Template> {
    let compiled: Vec<Option<Entry>> = entries
        .iter()
        .map(|entry| {
            let value = template(all, &entry.value, allowed)?;
            if &*entry.key != "..." {
                return Some(Entry::Field((&*entry.key).into(), value));
            }
            match value {
                Template::Value(_) | Template::Object(_) => Some(Entry::Spread(value)),
                Template::Constant(text) if text.starts_with('{') => Some(Entry::Spread(Template::Constant(text))),
                _ => all.fail(codes::TYPE, &entry.value.span, "`...` spreads a map or a reference to one"),
            }
        })
        .collect();
    let compiled: Vec<Entry> = compiled.into_iter().collect::<Option<_>>()?;
    let fields =
        compiled.iter().map(|entry| if let Entry::Field(key, Template::Constant(value)) = entry { Some((key, value)) } else { None });
    match fields.collect::<Option<Vec<_>>>() {
        None => Some(Template::Object(compiled)),
        Some(fields) => {
            let mut out = String::from("{");
            for (key, value) in fields {
                if out.len() > 1 {
                    out.push(',');
                }
                json::push_string(&mut out, key);
                out.push(':');
                out.push_str(value);
            }
            out.push('}');
            Some(Template::Constant(out.into()))
        }
    }
}

fn constants<'t>(templates: impl Iterator<Item = &'t Template>) -> Option<Vec<&'t str>> {
    templates.map(|template| if let Template::Constant(text) = template { Some(&**text) } else { None }).collect()
}

/// Compiles text with references in it.
pub(super) fn text(all: &Collected, node: &Node, allowed: AllowedRefs) -> Option<Text> {
    let written = super::values::text(all, node)?;
    let text = Text::parse(&written).map_err(|e| explain(all, e, &node.span, allowed)).ok()?;
    let mut well = true;
    for reference in text.references() {
        well &= may_stand(all, reference, &node.span, allowed);
    }
    well.then_some(text)
}

fn reference(all: &Collected, written: &str, at: &SourceSpan, allowed: AllowedRefs) -> Option<Reference> {
    let reference = Reference::parse(written).map_err(|e| explain(all, e, at, allowed)).ok()?;
    may_stand(all, &reference, at, allowed).then_some(reference)
}

fn may_stand(all: &Collected, reference: &Reference, at: &SourceSpan, allowed: AllowedRefs) -> bool {
    if allowed.has(reference.root) {
        return true;
    }
    let message = format!("`{reference}` has no value {}", allowed.place);
    all.report(Diagnostic::new(codes::NOT_HERE, at.clone(), message).hint(not_here_hint(reference.root, allowed)));
    false
}

/// What to do about a reference that has no value in this place.
pub(super) fn not_here_hint(root: Root, allowed: AllowedRefs) -> String {
    match root {
        Root::Result => "`$result` is the result of the row's `call`".into(),
        Root::Recovery => "`$recovery` is the result of the row's `join` with `recover`".into(),
        _ => format!("known here: {}", allowed.known()),
    }
}

fn explain(all: &Collected, error: Error, at: &SourceSpan, allowed: AllowedRefs) {
    let hint = match &error {
        Error::UnknownRoot(name) => Some(root_hint(name, |root| allowed.has(root))),
        Error::UnknownField { root, field, known } => Some(match nearest(field, known.iter().copied()) {
            Some(near) => format!("did you mean `${root}.{near}`?"),
            None => format!("known: {}", known.join(", ")),
        }),
        _ => None,
    };
    let diagnostic = Diagnostic::new(codes::REFERENCE, at.clone(), error.to_string());
    all.report(match hint {
        Some(hint) => diagnostic.hint(hint),
        None => diagnostic,
    });
}

/// The reference that was probably meant, or all that are known here.
pub(super) fn root_hint(name: &str, has: impl Fn(Root) -> bool) -> String {
    let known = Root::ALL.iter().filter(|(known, root)| !known.is_empty() && has(*root)).map(|(known, _)| *known);
    nearest(name, known).map_or_else(|| format!("known here: {}", names(has)), |near| format!("did you mean `${near}`?"))
}
