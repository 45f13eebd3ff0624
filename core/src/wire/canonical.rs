//! Canonical JSON, the text that signatures and hashes are made over (protocol.md section 1).
//!
//! It is the text an ECMAScript engine prints for an object with sorted members, so it inherits two habits of
//! such engines: members named like an array index come first, in numeric order, and numbers are doubles.

use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Number, Value};

use super::json::write_string;

/// The canonical text of `value`.
///
/// Depth costs heap, not stack: no value can overflow it.
#[must_use]
pub fn to_canonical(value: &Value) -> String {
    write(value, None)
}

/// The canonical text of an object without one of its own members: what a signature inside the object covers.
/// A value that is not an object, or has no such member, is written whole.
#[must_use]
pub fn without(value: &Value, member: &str) -> String {
    write(value, Some(member))
}

/// The canonical text of anything that serialises. Members that are not to be there must be skipped by its own
/// `Serialize`.
///
/// # Errors
/// The value does not serialise to JSON: a map with keys that are not strings, or an error of its own.
pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<String, serde_json::Error> {
    Ok(to_canonical(&serde_json::to_value(value)?))
}

/// What is still to be written of one container.
enum Open<'a> {
    Array(core::slice::Iter<'a, Value>),
    Object(alloc::vec::IntoIter<(&'a String, &'a Value)>),
}

fn write(value: &Value, skip: Option<&str>) -> String {
    let mut out = String::new();
    let mut stack = Vec::new();
    // Only the outermost object leaves a member out.
    open(value, skip, &mut out, &mut stack);
    while let Some(container) = stack.last_mut() {
        // A bracket inside a string is followed by its closing quote, so this is the container's own.
        let first = out.ends_with(['[', '{']);
        let next = match container {
            Open::Array(items) => items.next().map(|item| (None, item)),
            Open::Object(members) => members.next().map(|(name, item)| (Some(name), item)),
        };
        match next {
            Some((name, item)) => {
                if !first {
                    out.push(',');
                }
                if let Some(name) = name {
                    write_string(name, &mut out);
                    out.push(':');
                }
                open(item, None, &mut out, &mut stack);
            }
            None => {
                out.push(if matches!(container, Open::Array(_)) { ']' } else { '}' });
                stack.pop();
            }
        }
    }
    out
}

/// Writes a scalar, or the opening of a container that then waits on the stack.
fn open<'a>(value: &'a Value, skip: Option<&str>, out: &mut String, stack: &mut Vec<Open<'a>>) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(number, out),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push('[');
            stack.push(Open::Array(items.iter()));
        }
        Value::Object(members) => {
            out.push('{');
            stack.push(Open::Object(sorted(members, skip).into_iter()));
        }
    }
}

fn sorted<'a>(members: &'a Map<String, Value>, skip: Option<&str>) -> Vec<(&'a String, &'a Value)> {
    let mut members: Vec<_> = members.iter().filter(|(name, _)| skip != Some(name.as_str())).collect();
    members.sort_by(|(a, _), (b, _)| compare(a, b));
    members
}

/// The order of member names: array indices by number, then all others by UTF-16 code units.
fn compare(a: &str, b: &str) -> Ordering {
    match (array_index(a), array_index(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.encode_utf16().cmp(b.encode_utf16()),
    }
}

/// The value of a canonical array index of ECMAScript: `0` to `4294967294` in decimal, without leading zeros.
fn array_index(name: &str) -> Option<u32> {
    let canonical = match name.as_bytes() {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.len() <= 9 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !canonical {
        return None;
    }
    name.parse().ok().filter(|index| *index != u32::MAX)
}

/// A number as ECMAScript prints the nearest double.
fn write_number(number: &Number, out: &mut String) {
    // Without serde_json's arbitrary precision every number has a finite double.
    let value = number.as_f64().unwrap_or(0.0);
    if value == 0.0 {
        out.push('0'); // also minus zero
        return;
    }
    if value < 0.0 {
        out.push('-');
    }
    // The shortest digits that read back as the same double, which is what ECMAScript asks for; only the layout
    // differs: `d.ddde±n` here.
    let mut printed = String::new();
    let _ = write!(printed, "{:e}", value.abs());
    let Some((mantissa, exponent)) = printed.split_once('e') else { return };
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    // The value is 0.DIGITS × 10^point (ECMA-262, Number::toString, where it is called n).
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    lay_out(&digits, point, out);
}

fn lay_out(digits: &str, point: i32, out: &mut String) {
    let zeros = |out: &mut String, count: usize| out.extend(core::iter::repeat_n('0', count));
    match usize::try_from(point) {
        Ok(point @ 1..=21) => match digits.split_at_checked(point) {
            Some((whole, fraction)) => {
                out.push_str(whole);
                if !fraction.is_empty() {
                    out.push('.');
                    out.push_str(fraction);
                }
            }
            None => {
                out.push_str(digits);
                zeros(out, point - digits.len());
            }
        },
        _ if (-5..=0).contains(&point) => {
            out.push_str("0.");
            zeros(out, point.unsigned_abs() as usize);
            out.push_str(digits);
        }
        _ => {
            let (first, rest) = digits.split_at_checked(1).unwrap_or((digits, ""));
            out.push_str(first);
            if !rest.is_empty() {
                out.push('.');
                out.push_str(rest);
            }
            let exponent = point - 1;
            let sign = if exponent < 0 { '-' } else { '+' };
            let _ = write!(out, "e{sign}{}", exponent.unsigned_abs());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString as _;
    use serde_json::json;
    use sha2::{Digest as _, Sha256};

    fn canonical(text: &str) -> String {
        to_canonical(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn members_named_like_array_indices_come_first_and_in_numeric_order() {
        assert_eq!(
            canonical(r#"{"b":0,"10":0,"9":0,"0":0,"00":0,"-1":0,"4294967294":0,"4294967295":0,"1e3":0}"#),
            r#"{"0":0,"9":0,"10":0,"4294967294":0,"-1":0,"00":0,"1e3":0,"4294967295":0,"b":0}"#
        );
        assert_eq!(canonical(r#"{"99999999999":0,"4294967296":0,"":0}"#), {
            r#"{"":0,"4294967296":0,"99999999999":0}"#
        });
    }

    #[test]
    fn other_members_are_ordered_by_utf16_code_units_not_by_scalar_values() {
        // U+1F600 is the surrogate pair d83d de00, before U+FFEE; by scalar value it would come after.
        assert_eq!(canonical("{\"\u{ffee}\":0,\"\u{1f600}\":0}"), "{\"\u{1f600}\":0,\"\u{ffee}\":0}");
    }

    #[test]
    fn only_quotes_backslashes_and_controls_are_escaped() {
        let all: String = (0..=0x20u8).map(char::from).chain("\"\\/\u{7f}\u{2028}é".chars()).collect();
        let expected = "\"\\u0000\\u0001\\u0002\\u0003\\u0004\\u0005\\u0006\\u0007\\b\\t\\n\\u000b\\f\\r\\u000e\\u000f\
            \\u0010\\u0011\\u0012\\u0013\\u0014\\u0015\\u0016\\u0017\\u0018\\u0019\\u001a\\u001b\\u001c\\u001d\\u001e\
            \\u001f \\\"\\\\/\u{7f}\u{2028}é\"";
        assert_eq!(to_canonical(&Value::String(all)), expected);
    }

    #[test]
    fn numbers_print_as_ecmascript_prints_them() {
        // Right-hand sides: what an ECMAScript engine prints for the same literal.
        for (text, expected) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("100", "100"),
            ("-1.50", "-1.5"),
            ("123.456", "123.456"),
            ("1e20", "100000000000000000000"),
            ("123456789012345678901", "123456789012345680000"),
            ("999999999999999999999", "1e+21"),
            ("1e21", "1e+21"),
            ("1.5e300", "1.5e+300"),
            ("0.001", "0.001"),
            ("0.000001", "0.000001"),
            ("0.00000123", "0.00000123"),
            ("0.0000001", "1e-7"),
            ("1.234e-7", "1.234e-7"),
            ("-5e-324", "-5e-324"),
            ("2.2250738585072014e-308", "2.2250738585072014e-308"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("0.1", "0.1"),
            ("0.30000000000000004", "0.30000000000000004"),
            ("9007199254740993", "9007199254740992"),
            ("18446744073709551615", "18446744073709552000"),
            ("-9223372036854775808", "-9223372036854776000"),
            ("4.35", "4.35"),
            ("2e-3", "0.002"),
            ("5e-7", "5e-7"),
        ] {
            assert_eq!(canonical(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_survive_the_way_there_and_back() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let value = f64::from_bits(state);
            if value.is_finite() {
                let printed = to_canonical(&json!(value));
                assert_eq!(printed.parse::<f64>().unwrap().to_bits(), value.to_bits(), "{printed}");
            }
        }
    }

    #[test]
    fn canonical_text_is_its_own_canonical_text() {
        let text = r#"{"2":[],"10":{"x":[1,{"y":null}]},"a":"\u0001\"","z":[true,false,{}]}"#;
        assert_eq!(canonical(text), text);
    }

    #[test]
    fn a_signature_is_left_out_of_the_outermost_object_alone() {
        let value = json!({"signature": "s", "a": {"signature": "t"}});
        assert_eq!(without(&value, "signature"), r#"{"a":{"signature":"t"}}"#);
        assert_eq!(without(&json!([1]), "signature"), "[1]");
        assert_eq!(without(&json!({"signature": 1}), "signature"), "{}");
    }

    #[test]
    fn absent_members_of_a_struct_stay_absent() {
        #[derive(Serialize)]
        struct Sample {
            b: u8,
            #[serde(skip_serializing_if = "Option::is_none")]
            a: Option<u8>,
        }
        assert_eq!(of(&Sample { b: 1, a: None }).unwrap(), r#"{"b":1}"#);
        assert_eq!(of(&Sample { b: 1, a: Some(2) }).unwrap(), r#"{"a":2,"b":1}"#);
    }

    #[test]
    fn depth_does_not_cost_stack() {
        let mut value = json!(1);
        for _ in 0..10_000 {
            value = Value::Array(alloc::vec![value]);
        }
        let text = to_canonical(&value);
        assert_eq!(text, format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000)));
        // Dropping a value of this depth would itself recurse: take it apart layer by layer.
        while let Value::Array(mut items) = value {
            value = items.pop().unwrap_or(Value::Null);
        }
    }

    #[test]
    fn the_deployed_networks_vectors_hold() {
        let Some(vectors) = vectors("canonical-json") else { return };
        let vectors = vectors["vectors"].as_array().unwrap();
        assert!(!vectors.is_empty());
        for vector in vectors {
            let text = canonical(vector["input_json"].as_str().unwrap());
            assert_eq!(text, vector["canonical"].as_str().unwrap(), "{}", vector["name"]);
            let mut hash = String::new();
            for byte in Sha256::digest(text.as_bytes()) {
                let _ = write!(hash, "{byte:02x}");
            }
            assert_eq!(hash, vector["sha256"].as_str().unwrap(), "{}", vector["name"]);
        }
    }

    /// A file of the folder named by `CONSENSUS_VECTORS`; `None`, and a note, where there is none.
    pub(crate) fn vectors(name: &str) -> Option<Value> {
        text(&(name.to_string() + ".vectors.json")).map(|text| serde_json::from_str(&text).unwrap())
    }

    /// The messages of the transcripts, in the folder beside that of the vectors.
    pub(crate) fn transcripts() -> Option<Vec<Value>> {
        let text = text("../transcripts/messages.jsonl")?;
        let message = |line: &str| serde_json::from_str::<Value>(line).unwrap()["message"].take();
        Some(text.lines().map(message).collect())
    }

    fn text(path: &str) -> Option<String> {
        #[expect(clippy::disallowed_methods, reason = "only this test reads the environment, not the core")]
        let Ok(folder) = std::env::var("CONSENSUS_VECTORS") else {
            std::eprintln!("skipped: CONSENSUS_VECTORS is not set");
            return None;
        };
        Some(std::fs::read_to_string(std::path::Path::new(&folder).join(path)).unwrap())
    }
}
