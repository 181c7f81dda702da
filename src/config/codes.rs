//! Every code a diagnostic about a routes file may carry, in one table. The README prints it; each code has a test case.

macro_rules! codes {
    ($($name:ident = $code:literal: $text:literal;)*) => {
        $(#[doc = $text] pub(super) const $name: &str = $code;)*
        /// Code and what it is about, in order.
        pub const CODES: &[(&str, &str)] = &[$(($code, $text)),*];
    };
}

codes! {
    FILE = "R001": "a file cannot be read, is not UTF-8, or is larger than 1 MiB";
    SYNTAX = "R002": "not YAML, or more than one document";
    BOUNDS = "R003": "nested too deeply, too large once aliases are expanded, or too many channels";
    DUPLICATE_KEY = "R004": "a key appears twice in one map";
    UNKNOWN_KEY = "R005": "an unknown key";
    TYPE = "R006": "a value of the wrong type";
    MISSING = "R007": "a required key is missing";
    VALUE = "R008": "a duration, size, rate, number or word that is not valid";
    ENVIRONMENT = "R009": "an environment variable is not set";
    REFERENCE = "R010": "a reference or template that is not valid";
    NOT_HERE = "R011": "a reference that has no value in this place";
    CHANNEL = "R012": "a channel that matches no entry of `channels`";
    PATTERN = "R013": "a pattern that is not valid";
    AMBIGUOUS = "R014": "two channel patterns that match the same names";
    WHO = "R015": "a protocol or source that is not declared";
    NOT_ALLOWED = "R016": "a channel does not let this protocol or source join or publish";
    ADDRESS = "R017": "an address or path that is not valid";
    CLASH = "R018": "two things on the same address and path";
    API_SHARED = "R019": "the address of `api` is used by something else";
    API_OPEN = "R020": "`api` or an HTTP source can be reached from other machines and has no token";
    SCHEMA = "R021": "a JSON Schema that is not valid";
    CLOSE = "R022": "a close code that may not be sent, or a reason that is too long";
    INCLUDE = "R023": "a file that may not be included";
    DUPLICATE_NAME = "R024": "a name that is already taken";
    NAME = "R025": "a name that is not valid";
    VERSION = "R026": "a version of the language that this build does not support";
    AUDIENCE = "R027": "`audience` on a pattern that does not have exactly one capture";
    UNREACHABLE = "R028": "a row that is never reached";
    NOT_YET = "R029": "something that is not supported yet";
    KEYS = "R030": "a JSON Web Key Set that is not valid";
    PLUGIN = "R031": "a plugin file that cannot be used";
    EXPRESSION = "R032": "a `when` that is not valid";
    FUNCTION = "R033": "a function name that is not valid";
    CONFLICT = "R034": "keys that exclude each other";
    TLS = "R035": "a certificate or key that cannot be used, or different TLS settings on one address";
}

#[cfg(test)]
mod tests {
    #[test]
    fn codes_are_numbered_without_gaps() {
        for (i, (code, _)) in super::CODES.iter().enumerate() {
            assert_eq!(*code, format!("R{:03}", i + 1));
        }
    }
}
