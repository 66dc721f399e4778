//! Canonical JSON (RFC 8785, for values without fractions): one value has one spelling, so its digest is its
//! identity.

use serde::Serialize;
use serde_json::Value;

/// Largest integer that every JSON reader keeps exactly (2⁵³ − 1); RFC 8785 §3.2.2.3.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// A value as canonical JSON: keys sorted by UTF-16 code units, no white space, shortest escapes.
///
/// # Errors
/// A value with a fraction or an integer beyond [`MAX_INTEGER`], or one that serde cannot represent as JSON.
pub fn canonical<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    let value = serde_json::to_value(value).map_err(|e| e.to_string())?;
    let mut out = Vec::new();
    write(&value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => {
            let integer = number.as_i64().map(i64::unsigned_abs).or_else(|| number.as_u64());
            if integer.is_none_or(|n| n > MAX_INTEGER) {
                return Err(format!("{number} is not an integer that JSON keeps exactly"));
            }
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Value::String(text) => quote(text, out)?,
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
            out.push(b'{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                quote(key, out)?;
                out.push(b':');
                write(item, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

/// serde_json's escapes are RFC 8785's: `\b \t \n \f \r \" \\`, else `\u00xx` in lower case below U+0020.
fn quote(text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    serde_json::to_writer(out, text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_value_has_one_spelling() {
        let a = json!({"b": [1, "x\u{1f}\n"], "a": {"z": null, "é": true}});
        let text = String::from_utf8(canonical(&a).unwrap()).unwrap();
        assert_eq!(text, r#"{"a":{"z":null,"é":true},"b":[1,"x\u001f\n"]}"#);
    }

    #[test]
    fn keys_sort_as_utf_16() {
        // U+FB33 sorts after U+1F600 in UTF-16 (0xD83D first) though not in UTF-8: the example of RFC 8785
        // §3.2.3.
        let a = json!({"\u{fb33}": 1, "\u{1f600}": 2});
        assert_eq!(
            canonical(&a).unwrap(),
            "{\"\u{1f600}\":2,\"\u{fb33}\":1}".as_bytes()
        );
    }

    #[test]
    fn numbers_that_readers_disagree_on_are_refused() {
        assert!(canonical(&json!(1.5)).is_err());
        assert!(canonical(&json!(MAX_INTEGER + 1)).is_err());
        assert_eq!(canonical(&json!(MAX_INTEGER)).unwrap(), b"9007199254740991");
    }
}
