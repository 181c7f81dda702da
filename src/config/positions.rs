//! The positions of everything in a YAML text, and whether it is safe to read: one pass over parser events that builds no values
//! and never recurses. Knows nothing of what the file means.

use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser};

use super::codes;
use super::diagnostic::Diagnostic;
use super::plan::SourceSpan;
use crate::model::SourceLocation;

/// How deep a file may nest, aliases expanded. So code that walks the tree may recurse.
pub(super) const DEPTH_MAX: usize = 64;
/// How many values a configuration may have, aliases expanded.
pub(super) const NODES_MAX: usize = 200_000;
/// How many bytes of text a configuration may have, aliases expanded.
pub(super) const EXPANDED_BYTES_MAX: usize = 8 << 20;

/// The positions of one document. Aliases stay aliases here.
pub(super) struct Positions {
    spots: Vec<Spot>,
    root: Option<usize>,
}

/// One value of the document.
pub(super) struct Spot {
    pub(super) span: SourceSpan,
    pub(super) kind: Kind,
    cost: Cost,
    height: usize,
}

pub(super) enum Kind {
    Scalar,
    List(Vec<usize>),
    /// Key, its place, and the value.
    Map(Vec<(Box<str>, SourceSpan, usize)>),
    Alias(usize),
}

/// What a value costs once aliases are expanded. Shared by all files of a configuration.
#[derive(Clone, Copy, Default)]
pub(super) struct Cost {
    nodes: usize,
    bytes: usize,
}

impl Cost {
    fn add(&mut self, other: Cost) {
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl Positions {
    /// Reads a text. The cost of the document is added to `total`.
    pub(super) fn of(text: &str, file: &Arc<str>, total: &mut Cost) -> Result<Self, Vec<Diagnostic>> {
        let lines: Vec<usize> = text.lines().map(|line| line.trim_end().chars().count()).collect();
        let mut scan =
            Scan { file, lines, total, spots: Vec::new(), open: Vec::new(), anchors: HashMap::new(), root: None, doubles: Vec::new() };
        let mut documents = 0;
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|e| vec![scan.syntax_error(*e.marker(), e.info())])?;
            if matches!(event, Event::DocumentStart(_)) {
                documents += 1;
                if documents > 1 {
                    return Err(vec![Diagnostic::new(
                        codes::SYNTAX,
                        scan.span(&span),
                        "a second document begins here: a routes file must be one document",
                    )]);
                }
            }
            scan.event(event, &span).map_err(|d| vec![d])?;
        }
        if scan.doubles.is_empty() { Ok(Self { root: scan.root, spots: scan.spots }) } else { Err(scan.doubles) }
    }

    /// The whole document, if there is anything in it.
    pub(super) fn root(&self) -> Option<&Spot> {
        self.root.map(|i| &self.spots[i])
    }

    /// The node at an index, aliases followed.
    pub(super) fn get(&self, index: usize) -> (&SourceSpan, &Kind) {
        let spot = &self.spots[index];
        let mut target = spot;
        while let Kind::Alias(to) = target.kind {
            target = &self.spots[to];
        }
        (&spot.span, &target.kind)
    }
}

struct Scan<'a> {
    file: &'a Arc<str>,
    /// Length of each line in characters.
    lines: Vec<usize>,
    total: &'a mut Cost,
    spots: Vec<Spot>,
    open: Vec<Open>,
    /// None: the anchor's value has begun and not ended.
    anchors: HashMap<usize, Option<usize>>,
    root: Option<usize>,
    doubles: Vec<Diagnostic>,
}

/// A list or map that has begun and not ended.
struct Open {
    span: SourceSpan,
    anchor: usize,
    kind: Kind,
    cost: Cost,
    height: usize,
    key: Option<(Box<str>, SourceSpan)>,
    seen: HashMap<Box<str>, SourceLocation>,
}

impl Scan<'_> {
    fn event(&mut self, event: Event<'_>, span: &saphyr_parser::Span) -> Result<(), Diagnostic> {
        // A map or list in block style begins at its first entry; its own key is the better place to show.
        let own_key = self.open.last().and_then(|open| open.key.as_ref()).filter(|_| span.is_empty()).map(|(_, span)| span.clone());
        let span = self.span(span);
        match event {
            Event::Scalar(text, _, anchor, _) => {
                if self.expects_key() {
                    self.key(&text, span);
                    return Ok(());
                }
                // An empty value has no place of its own, so its key is shown.
                let key_span = self.open.last().and_then(|open| open.key.as_ref()).map(|(_, span)| span.clone());
                let span = if text.is_empty() || &*text == "~" { key_span.unwrap_or(span) } else { span };
                let cost = Cost { nodes: 1, bytes: text.len() };
                self.add(Spot { span, kind: Kind::Scalar, cost, height: 0 }, anchor)
            }
            Event::Alias(anchor) => {
                self.refuse_as_key(&span)?;
                let Some(Some(target)) = self.anchors.get(&anchor).copied() else {
                    return Err(Diagnostic::new(codes::BOUNDS, span, "an alias inside the value it stands for"));
                };
                let (cost, height) = (self.spots[target].cost, self.spots[target].height);
                self.add(Spot { span, kind: Kind::Alias(target), cost, height }, 0)
            }
            Event::SequenceStart(anchor, _) => self.begin(Kind::List(Vec::new()), anchor, own_key.unwrap_or(span)),
            Event::MappingStart(anchor, _) => self.begin(Kind::Map(Vec::new()), anchor, own_key.unwrap_or(span)),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { span, anchor, kind, mut cost, height, .. }) = self.open.pop() else { return Ok(()) };
                cost.nodes = cost.nodes.saturating_add(1);
                self.add(Spot { span, kind, cost, height: height + 1 }, anchor)
            }
            _ => Ok(()),
        }
    }

    fn expects_key(&self) -> bool {
        self.open.last().is_some_and(|open| matches!(open.kind, Kind::Map(_)) && open.key.is_none())
    }

    fn refuse_as_key(&self, span: &SourceSpan) -> Result<(), Diagnostic> {
        if self.expects_key() { Err(Diagnostic::new(codes::TYPE, span.clone(), "a key must be text")) } else { Ok(()) }
    }

    fn begin(&mut self, kind: Kind, anchor: usize, span: SourceSpan) -> Result<(), Diagnostic> {
        self.refuse_as_key(&span)?;
        if self.open.len() >= DEPTH_MAX {
            return Err(too_deep(span));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, None);
        }
        self.open.push(Open { span, anchor, kind, cost: Cost::default(), height: 0, key: None, seen: HashMap::new() });
        Ok(())
    }

    fn key(&mut self, text: &str, span: SourceSpan) {
        let Some(open) = self.open.last_mut() else { return };
        if let Some(first) = open.seen.insert(text.into(), span.location.clone()) {
            let message = format!("`{text}` appears twice in this map");
            self.doubles.push(Diagnostic::new(codes::DUPLICATE_KEY, span.clone(), message).hint(format!("first on line {}", first.line)));
        }
        open.cost.bytes = open.cost.bytes.saturating_add(text.len());
        open.key = Some((text.into(), span));
    }

    fn add(&mut self, spot: Spot, anchor: usize) -> Result<(), Diagnostic> {
        let index = self.spots.len();
        let (cost, height, span) = (spot.cost, spot.height, spot.span.clone());
        // A list or map was counted value by value; an alias counts as everything it stands for.
        let cost = if matches!(spot.kind, Kind::List(_) | Kind::Map(_)) { Cost { nodes: 1, bytes: 0 } } else { cost };
        self.total.add(cost);
        if self.total.nodes > NODES_MAX || self.total.bytes > EXPANDED_BYTES_MAX {
            let message = format!("more than {NODES_MAX} values or {} MiB of text with aliases expanded", EXPANDED_BYTES_MAX >> 20);
            return Err(Diagnostic::new(codes::BOUNDS, span, message));
        }
        if self.open.len() + height > DEPTH_MAX {
            return Err(too_deep(span));
        }
        self.spots.push(spot);
        if anchor > 0 {
            self.anchors.insert(anchor, Some(index));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(index);
            return Ok(());
        };
        open.cost.add(cost);
        open.height = open.height.max(height);
        match &mut open.kind {
            Kind::List(items) => items.push(index),
            Kind::Map(entries) => {
                if let Some((key, key_span)) = open.key.take() {
                    entries.push((key, key_span, index));
                }
            }
            Kind::Scalar | Kind::Alias(_) => {}
        }
        Ok(())
    }

    /// A span on one line: a value of several lines is shown up to the end of its first.
    fn span(&self, span: &saphyr_parser::Span) -> SourceSpan {
        let (start, end) = (span.start, span.end);
        let line_len = self.lines.get(start.line().saturating_sub(1)).copied().unwrap_or(0);
        let on_line = if end.line() == start.line() && end.col() > start.col() { end.col() } else { line_len };
        let len = on_line.min(line_len.max(start.col() + 1)).saturating_sub(start.col()).max(1);
        SourceSpan { location: location(self.file, start), len: u32::try_from(len).unwrap_or(u32::MAX) }
    }

    fn syntax_error(&self, at: saphyr_parser::Marker, info: &str) -> Diagnostic {
        // At the end of the text the last line is shown.
        let line = at.line().clamp(1, self.lines.len().max(1));
        let column = if line < at.line() { self.lines.last().copied().unwrap_or(0) } else { at.col() };
        let at = saphyr_parser::Marker::new(at.index(), line, column);
        let span = SourceSpan { location: location(self.file, at), len: 1 };
        // The scanner looks ahead, and has a bound of its own.
        if info.starts_with("recursion limit") {
            return too_deep(span);
        }
        let diagnostic = Diagnostic::new(codes::SYNTAX, span, format!("not YAML: {info}"));
        if info.starts_with("mapping values") { diagnostic.hint("text with `:` in it may need quotes") } else { diagnostic }
    }
}

fn location(file: &Arc<str>, at: saphyr_parser::Marker) -> SourceLocation {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).max(1);
    SourceLocation { file: file.clone(), line: number(at.line()), column: number(at.col() + 1) }
}

fn too_deep(span: SourceSpan) -> Diagnostic {
    Diagnostic::new(codes::BOUNDS, span, format!("nested deeper than {DEPTH_MAX} levels"))
}
