//! JSON in the one form of RFC 8785: the same values are the same bytes, whoever writes them. Numbers here
//! are whole and below 2^53, where that form and serde_json's agree.

use serde::Serialize;
use serde_json::Value;

/// The largest number that a double holds without rounding, which RFC 8785 asks for.
pub const LARGEST: u64 = (1 << 53) - 1;

/// A value that has no such form.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// Not JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A fraction, or a number that is rounded.
    #[error("{0} is not a whole number below 2^53")]
    Number(serde_json::Number),
}

/// The bytes of a value: keys sorted by their UTF-16 code units, no space, as few escapes as can be.
pub fn to_string(value: &impl Serialize) -> Result<String, CanonicalError> {
    let mut text = String::new();
    write(&serde_json::to_value(value)?, &mut text)?;
    Ok(text)
}

fn write(value: &Value, text: &mut String) -> Result<(), CanonicalError> {
    match value {
        Value::Number(number) => {
            let whole = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            if whole.is_none_or(|whole| whole > LARGEST) {
                return Err(CanonicalError::Number(number.clone()));
            }
            text.push_str(&number.to_string());
        }
        Value::Array(values) => {
            text.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write(value, text)?;
            }
            text.push(']');
        }
        Value::Object(object) => {
            let mut members: Vec<_> = object.iter().collect();
            members.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
            text.push('{');
            for (index, (key, value)) in members.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&serde_json::to_string(key)?);
                text.push(':');
                write(value, text)?;
            }
            text.push('}');
        }
        Value::Null | Value::Bool(_) | Value::String(_) => text.push_str(&serde_json::to_string(value)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The example of RFC 8785, 3.2.2 and 3.2.3, without its fractions.
    #[test]
    fn the_form_is_that_of_the_rfc() {
        let value = json!({
            "\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew Letter Dalet With Dagesh",
            "1": "One", "\u{1f600}": "Emoji: Grinning Face", "\u{80}": "Control", "\u{f6}": "Latin Small Letter O",
        });
        let text = to_string(&value).unwrap();
        let sorted = ["\\r", "1", "\u{80}", "\u{f6}", "\u{20ac}", "\u{1f600}", "\u{fb33}"];
        let places: Vec<_> = sorted.iter().map(|key| text.find(&format!("\"{key}\":")).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
        let text = to_string(&json!({"b": [null, true, 7, -3], "a": "\u{20ac}$\u{f}\nA'\u{42}\"\\\\\"/"}));
        assert_eq!(
            text.unwrap(),
            "{\"a\":\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\",\"b\":[null,true,7,-3]}"
        );
    }

    #[test]
    fn what_has_no_such_form_is_refused() {
        assert!(to_string(&json!(1.5)).is_err() && to_string(&json!(LARGEST + 1)).is_err());
        assert_eq!(to_string(&json!([LARGEST])).unwrap(), "[9007199254740991]");
    }
}
