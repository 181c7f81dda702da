//! Templates: whatever is rendered is JSON, and it is what the same rules give on trees. Input: the message on the first line,
//! the template as JSON on the others, where `{"!json": …}` is an encoded subtree.
#![no_main]

use std::borrow::Cow;

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value as Tree};
use tramline::model::Json;
use tramline::model::template::{Entry, Reference, Root, Scope, Template, Text, Value};

fuzz_target!(|text: &str| {
    let (message, written) = text.split_once('\n').unwrap_or(("{}", text));
    if let Ok(reference) = Reference::parse(written) {
        assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
    }
    if let Ok(text) = Text::parse(written) {
        text.source();
        assert!(text.literal_prefix().len() <= written.len());
        assert_eq!(text.as_constant().is_some(), text.references().next().is_none());
    }
    let Ok(message) = Json::parse(message.into()) else { return };
    let Ok(written) = serde_json::from_str::<Tree>(written) else { return };
    let Some(template) = compile(&written) else { return };
    let scope = Message(message.as_str());
    let rendered = template.render(&scope);
    if let Some(out) = &rendered {
        assert!(serde_json::from_str::<&serde_json::value::RawValue>(out).is_ok(), "{out}");
    }
    template.references();
    // Not every message has a tree: half a surrogate pair is no text, and 1e999 no number.
    if let Ok(tree) = serde_json::from_str::<Tree>(message.as_str()) {
        let rendered = rendered.map(|out| serde_json::from_str::<Tree>(&out).expect("what has a tree gives what has one"));
        assert_eq!(rendered, naive(&written, &tree, message.as_str()));
    }
});

struct Message<'m>(&'m str);

impl Scope for Message<'_> {
    fn resolve<'a>(&'a self, reference: &'a Reference) -> Value<'a> {
        match reference.root {
            Root::Message => Value::below(Some(self.0), &reference.path),
            Root::Raw => Value::Text(self.0.into()),
            Root::Type => Value::Text("a\"\\\u{1}b".into()),
            Root::NowMs => Value::Int(-7),
            Root::Data => Value::below(Some(r#"{"a":1,"b":null,"a":2}"#), &reference.path),
            Root::Result => Value::below(Some(self.0), &reference.path)
                .into_json()
                .map_or(Value::Missing, |text| Value::Json(Cow::Owned(text.into_owned()))),
            _ => Value::Missing,
        }
    }
}

fn compile(written: &Tree) -> Option<Template> {
    Some(match written {
        Tree::String(text) if Reference::is_meant(text) => Template::Value(Reference::parse(text).ok()?),
        Tree::String(text) => Template::Text(Text::parse(text).ok()?),
        Tree::Array(list) => Template::Array(list.iter().map(compile).collect::<Option<_>>()?),
        Tree::Object(map) => match encoded(map) {
            Some(inner) => Template::Encoded(Box::new(compile(inner)?)),
            None => Template::Object(map.iter().map(entry).collect::<Option<_>>()?),
        },
        _ => Template::constant(written),
    })
}

fn entry((key, value): (&String, &Tree)) -> Option<Entry> {
    let value = compile(value)?;
    match &value {
        _ if key != "..." => Some(Entry::Field(key.as_str().into(), value)),
        Template::Value(_) | Template::Object(_) => Some(Entry::Spread(value)),
        _ => None,
    }
}

fn encoded(map: &Map<String, Tree>) -> Option<&Tree> {
    map.get("!json").filter(|_| map.len() == 1)
}

/// The same on trees. None: missing.
fn naive(written: &Tree, message: &Tree, raw: &str) -> Option<Tree> {
    Some(match written {
        Tree::String(text) if Reference::is_meant(text) => resolve(&Reference::parse(text).ok()?, message, raw)?,
        Tree::String(written) => {
            let text = Text::parse(written).ok()?;
            if text.references().next().is_some() {
                // What text is made of is checked above; here only whether it is there.
                if text.references().any(|reference| resolve(reference, message, raw).is_none_or(|value| value.is_null())) {
                    return None;
                }
                return Template::Text(text).render(&Message(raw)).and_then(|out| serde_json::from_str(&out).ok());
            }
            text.as_constant()?.into()
        }
        Tree::Array(list) => list.iter().filter_map(|item| naive(item, message, raw)).collect(),
        Tree::Object(map) => match encoded(map) {
            Some(_) => return Template::render(&compile(written)?, &Message(raw)).and_then(|out| serde_json::from_str(&out).ok()),
            None => {
                let mut out = Map::new();
                for (key, value) in map {
                    match naive(value, message, raw) {
                        Some(Tree::Object(spread)) if key == "..." => out.extend(spread),
                        Some(value) if key != "..." => drop(out.insert(key.clone(), value)),
                        _ => {}
                    }
                }
                out.into()
            }
        },
        other => other.clone(),
    })
}

fn resolve(reference: &Reference, message: &Tree, raw: &str) -> Option<Tree> {
    let below = |tree: &Tree| {
        reference.path.iter().try_fold(tree.clone(), |at, step| match at {
            Tree::Object(map) => map.get(&**step).cloned(),
            Tree::Array(list) => list.get(step.parse::<usize>().ok()?).cloned(),
            _ => None,
        })
    };
    match reference.root {
        Root::Message | Root::Result => below(message),
        Root::Raw => Some(raw.into()),
        Root::Type => Some("a\"\\\u{1}b".into()),
        Root::NowMs => Some((-7).into()),
        Root::Data => below(&serde_json::json!({"a": 2, "b": null})),
        _ => None,
    }
}
