//! JSON Schema, compiled once. Reports what is wrong and where; does not know what the checked value is for.

use jsonschema::{ValidationError, error::ValidationErrorKind};
use serde_json::Value;

use crate::model::fault::Flaw;
use crate::model::json::Json;

/// How many mistakes are reported for one value.
const FLAWS_MAX: usize = 16;

/// A compiled schema (draft 2020-12 unless it names another). Its patterns run in linear time and it fetches nothing.
#[derive(Debug)]
pub struct Schema(jsonschema::Validator);

impl Schema {
    /// Compiles a schema. The error is a JSON Pointer into the schema and what is wrong there.
    pub fn compile(schema: &Value) -> Result<Self, Flaw> {
        jsonschema::options()
            .with_pattern_options(jsonschema::PatternOptions::regex())
            .build(schema)
            .map(Self)
            .map_err(|e| Flaw { path: e.instance_path().to_string(), message: shorten(e.to_string()) })
    }

    /// Checks a value. Paths in the flaws are JSON Pointers into it.
    pub fn check(&self, value: &Json) -> Result<(), Vec<Flaw>> {
        let tree = value.to_value().map_err(|e| vec![Flaw { path: String::new(), message: shorten(e.to_string()) }])?;
        let flaws: Vec<Flaw> = self.0.iter_errors(&tree).take(FLAWS_MAX).map(|e| flaw(&e)).collect();
        if flaws.is_empty() { Ok(()) } else { Err(flaws) }
    }
}

/// A missing member is reported with the path where it should be.
fn flaw(error: &ValidationError<'_>) -> Flaw {
    let path = error.instance_path().to_string();
    match error.kind() {
        ValidationErrorKind::Required { property: Value::String(name) } => {
            let step = name.replace('~', "~0").replace('/', "~1");
            Flaw { path: shorten(format!("{path}/{step}")), message: "is missing".into() }
        }
        _ => Flaw { path, message: shorten(error.masked().to_string()) },
    }
}

/// Messages name values; a large one must not come back whole.
fn shorten(mut message: String) -> String {
    const BYTES_MAX: usize = 200;
    if message.len() > BYTES_MAX {
        message.truncate(message.floor_char_boundary(BYTES_MAX));
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text.into()).unwrap()
    }

    #[test]
    fn flaws_name_the_path() {
        let schema = Schema::compile(
            &serde_json::json!({"required": ["a"], "properties": {"a": {"type": "object", "properties": {"n": {"type": "integer"}}}}}),
        )
        .unwrap();
        assert!(schema.check(&json(r#"{"a":{"n":1}}"#)).is_ok());
        assert_eq!(schema.check(&json(r#"{"a":{"n":"x"}}"#)).unwrap_err()[0].path, "/a/n");
        let missing = schema.check(&json("{}")).unwrap_err();
        assert_eq!(missing, [Flaw { path: "/a".into(), message: "is missing".into() }]);
    }

    #[test]
    fn what_has_no_tree_is_refused_not_checked_as_null() {
        let schema = Schema::compile(&serde_json::json!({"required": ["id"]})).unwrap();
        for text in [r#"{"x":1e999}"#, r#"{"x":"\ud800"}"#] {
            assert!(schema.check(&json(text)).unwrap_err()[0].message.starts_with("not JSON"), "{text}");
        }
    }

    #[test]
    fn a_broken_schema_says_where() {
        let flaw = Schema::compile(&serde_json::json!({"properties": {"a": {"type": "sting"}}})).unwrap_err();
        assert_eq!(flaw.path, "/properties/a/type");
    }

    #[test]
    fn a_remote_reference_is_refused_not_fetched() {
        assert!(Schema::compile(&serde_json::json!({"$ref": "http://127.0.0.1:1/x.json"})).is_err());
    }
}
