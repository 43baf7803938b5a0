//! Strict JSON for control messages, and bytes in it (`W-2.7`, `W-2.8`).
//!
//! Two readers must never take one message for two things. So a duplicate key, an integer that
//! not every reader keeps exact, and anything nested deeper than a limit are refused, before the
//! message is read as what it claims to be.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use base64ct::{Base64, Encoding as _};
use serde::de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::{JSON_DEPTH_MAX, JSON_INTEGER_MAX};

/// What is wrong with a control message. The text is for people and logs; it never holds bytes of
/// the message other than names of fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// Reads a message strictly.
///
/// The message is gone through twice, first for what must not be in it and then for what it says:
/// a tree of values in between would take up to forty times the memory of the message.
///
/// # Errors
/// Not UTF-8, not one JSON object, a duplicate key at any depth, nesting over
/// [`JSON_DEPTH_MAX`], a number over [`JSON_INTEGER_MAX`] or not finite, a lone surrogate, or not
/// of the form of `T`. Unknown fields are ignored.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    check(bytes)
        .and_then(|()| serde_json::from_slice(bytes))
        .map_err(|error| JsonError(error.to_string()))
}

fn check(bytes: &[u8]) -> Result<(), serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let shape = Strict { depth: 0 }.deserialize(&mut reader)?;
    reader.end()?;
    match shape {
        Shape::Object => Ok(()),
        Shape::Other => Err(serde::de::Error::custom("not a JSON object")),
    }
}

/// Writes a message.
///
/// Every message is a struct of ours with string keys, so writing can't fail; an empty object
/// stands in for the impossible case and the peer refuses it.
#[must_use]
pub fn to_vec<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_else(|_| b"{}".to_vec())
}

/// What a value is, as far as that matters here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Object,
    Other,
}

/// Goes through a value and keeps nothing of it but the keys of the objects that are open.
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
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("strict JSON")
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Shape, E> {
        if value > JSON_INTEGER_MAX {
            return Err(E::custom("an integer over 2^53"));
        }
        Ok(Shape::Other)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Shape, E> {
        if value.unsigned_abs() > JSON_INTEGER_MAX {
            return Err(E::custom("an integer under -2^53"));
        }
        Ok(Shape::Other)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Shape, E> {
        // A whole number that overflows the integer types arrives here.
        #[expect(clippy::cast_precision_loss, reason = "2^53 is exact in an f64")]
        let limit = JSON_INTEGER_MAX as f64;
        if value.is_nan() || value.abs() > limit {
            return Err(E::custom("a number over 2^53"));
        }
        Ok(Shape::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let depth = self.deeper()?;
        while seq.next_element_seed(Self { depth })?.is_some() {}
        Ok(Shape::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        use serde::de::Error as _;
        let depth = self.deeper()?;
        let mut keys = BTreeSet::new();
        while let Some(key) = map.next_key_seed(Key)? {
            if !keys.insert(key) {
                return Err(A::Error::custom("a duplicate key"));
            }
            map.next_value_seed(Self { depth })?;
        }
        Ok(Shape::Object)
    }
}

/// A key after its escapes are undone, borrowed where there are none.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
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

#[cfg(test)]
mod tests;
