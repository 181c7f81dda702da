//! JSON text: what looks into it without a tree agrees with serde_json, which builds one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tramline::model::Json;
use tramline::model::json::{DEPTH_MAX, Error, as_text, get, items, key_is, member, members, push_string, unquote};

fuzz_target!(|text: &str| {
    let mut quoted = String::new();
    push_string(&mut quoted, text);
    assert_eq!(serde_json::from_str::<String>(&quoted).ok().as_deref(), Some(text));
    assert_eq!(unquote(&quoted), text);

    let tree = serde_json::from_str::<Value>(text);
    match Json::parse(text.into()) {
        Ok(json) => {
            look_everywhere(json.as_str());
            // Not every text has a tree: half a surrogate pair is no text, and 1e999 no number.
            if let Ok(tree) = tree {
                assert!(depth(&tree) <= DEPTH_MAX);
                agrees(text, &tree);
                assert_eq!(get::<&str>(text, &[]), Some(text.trim_matches([' ', '\t', '\n', '\r'])));
            }
        }
        Err(Error::Syntax(_)) => assert!(tree.is_err()),
        Err(Error::TooDeep) => assert!(tree.map_or(true, |tree| depth(&tree) > DEPTH_MAX)),
    }
});

/// Reads every part once, whatever it means.
fn look_everywhere(text: &str) {
    for part in items(text) {
        look_everywhere(part);
    }
    for (key, part) in members(text) {
        assert!(key_is(key, &unquote(key)));
        assert!(member(text, &unquote(key)).is_some());
        look_everywhere(part);
    }
    as_text(text);
}

fn agrees(text: &str, tree: &Value) {
    assert_eq!(serde_json::from_str::<Value>(text).ok().as_ref(), Some(tree));
    match tree {
        Value::Object(map) => {
            assert!(members(text).all(|(key, _)| map.contains_key(&*unquote(key))));
            for (key, expected) in map {
                let found = member(text, key).expect("a key of the tree is a member of the text");
                assert_eq!(get(text, &[key]), Some(found));
                agrees(found, expected);
            }
        }
        Value::Array(list) => {
            assert_eq!(items(text).count(), list.len());
            for (i, (found, expected)) in items(text).zip(list).enumerate() {
                assert_eq!(get(text, &[i.to_string()]), Some(found));
                agrees(found, expected);
            }
        }
        Value::String(expected) => assert_eq!(as_text(text.trim()).as_deref(), Some(&**expected)),
        _ => assert_eq!(as_text(text.trim()), None),
    }
}

fn depth(tree: &Value) -> usize {
    match tree {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
