//! Strict JSON for control messages, and bytes in it (`W-2.7`, `W-2.8`).
//!
//! Two readers must never take one message for two things. So a duplicate key, an integer that
//! not every reader keeps exact, and anything nested deeper than a limit are refused, before the
//! message is read as what it claims to be.

use std::fmt;

use base64ct::{Base64, Encoding as _};
use serde::de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Number, Value};

use crate::limits::{JSON_DEPTH_MAX, JSON_INTEGER_MAX};

/// What is wrong with a control message. The text is for people and logs; it never holds bytes of
/// the message other than names of fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// Reads a message strictly.
///
/// # Errors
/// Not UTF-8, not one JSON object, a duplicate key at any depth, nesting over
/// [`JSON_DEPTH_MAX`], a number over [`JSON_INTEGER_MAX`] or not finite, a lone surrogate, or not
/// of the form of `T`. Unknown fields are ignored.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0 }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|error| JsonError(error.to_string()))?;
    if !value.is_object() {
        return Err(JsonError("not a JSON object".into()));
    }
    serde_json::from_value(value).map_err(|error| JsonError(error.to_string()))
}

/// Writes a message.
///
/// Every message is a struct of ours with string keys, so writing can't fail; an empty object
/// stands in for the impossible case and the peer refuses it.
#[must_use]
pub fn to_vec<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_else(|_| b"{}".to_vec())
}

struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(&self) -> Result<usize, E> {
        let depth = self.depth.saturating_add(1);
        if depth > JSON_DEPTH_MAX {
            return Err(E::custom(format_args!("nested deeper than {JSON_DEPTH_MAX}")));
        }
        Ok(depth)
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("strict JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        if value > JSON_INTEGER_MAX {
            return Err(E::custom("an integer over 2^53"));
        }
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() > JSON_INTEGER_MAX {
            return Err(E::custom("an integer under -2^53"));
        }
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        // A whole number that overflows the integer types arrives here.
        #[expect(clippy::cast_precision_loss, reason = "2^53 is exact in an f64")]
        let limit = JSON_INTEGER_MAX as f64;
        if value.abs() > limit {
            return Err(E::custom("a number over 2^53"));
        }
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let depth = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Self { depth })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        use serde::de::Error as _;
        let depth = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Self { depth })?;
            if object.insert(key, value).is_some() {
                return Err(A::Error::custom("a duplicate key"));
            }
        }
        Ok(Value::Object(object))
    }
}

/// Bytes that need not be UTF-8, without loss: a string where they are UTF-8, and an object
/// `{"base64": "…"}` where they are not (`W-2.8`).
///
/// What is UTF-8 must be sent as a string, so that each sequence of bytes has one form.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteString(pub Vec<u8>);

impl ByteString {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

impl From<&str> for ByteString {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for ByteString {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ByteStringForm {
    Text(String),
    Base64 { base64: String },
}

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => ByteStringForm::Base64 { base64: Base64::encode_string(&self.0) }
                .serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        match ByteStringForm::deserialize(deserializer)? {
            ByteStringForm::Text(text) => Ok(Self(text.into_bytes())),
            ByteStringForm::Base64 { base64 } => {
                let bytes = Base64::decode_vec(&base64)
                    .map_err(|_| D::Error::custom("malformed base64"))?;
                if std::str::from_utf8(&bytes).is_ok() {
                    return Err(D::Error::custom("UTF-8 sent as base64"));
                }
                Ok(Self(bytes))
            }
        }
    }
}

/// Bytes that are always base64: keys, nonces, hashes.
pub mod base64_bytes {
    use super::{Base64, Deserialize, Deserializer, Serializer};
    use base64ct::Encoding as _;

    /// Writes bytes as padded base64 (RFC 4648, section 4).
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Base64::encode_string(bytes))
    }

    /// Reads padded base64 (RFC 4648, section 4).
    ///
    /// # Errors
    /// Not a string, or not such base64.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        use serde::de::Error as _;
        let text = String::deserialize(deserializer)?;
        Base64::decode_vec(&text).map_err(|_| D::Error::custom("malformed base64"))
    }
}
