//! argv and environment as exec takes them: byte strings that end at the first NUL.

use std::ffi::CString;
use thiserror::Error;

/// Why bytes cannot be an argument, a path or an environment entry of a process.
///
/// All of these are the requester's fault and are found before anything is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ExecStringError {
    /// The kernel's strings end at a NUL, so what follows it would silently be lost.
    #[error("a NUL byte at offset {offset} of an argument, path or environment entry")]
    Nul {
        /// Where in the bytes the first NUL stands.
        offset: usize,
    },
    /// `=value` has no name, and programs disagree about what it means.
    #[error("an environment variable with an empty name")]
    EmptyName,
    /// The name would be cut at its `=` and the rest become a part of the value.
    #[error("an environment variable whose name holds '='")]
    EqualsInName,
}

/// One argument or path.
///
/// # Errors
/// [`ExecStringError::Nul`].
pub fn exec_string(bytes: &[u8]) -> Result<CString, ExecStringError> {
    CString::new(bytes).map_err(|error| ExecStringError::Nul { offset: error.nul_position() })
}

/// A whole argv.
///
/// # Errors
/// [`ExecStringError::Nul`] of the first string that holds one.
pub fn exec_strings<S: AsRef<[u8]>>(
    strings: impl IntoIterator<Item = S>,
) -> Result<Vec<CString>, ExecStringError> {
    strings.into_iter().map(|string| exec_string(string.as_ref())).collect()
}

/// `name=value`, an entry of the environment.
///
/// # Errors
/// Any [`ExecStringError`].
pub fn env_entry(name: &[u8], value: &[u8]) -> Result<CString, ExecStringError> {
    if name.is_empty() {
        return Err(ExecStringError::EmptyName);
    }
    if name.contains(&b'=') {
        return Err(ExecStringError::EqualsInName);
    }
    let mut entry = Vec::with_capacity(name.len() + value.len() + 2);
    entry.extend_from_slice(name);
    entry.push(b'=');
    entry.extend_from_slice(value);
    CString::new(entry).map_err(|error| ExecStringError::Nul { offset: error.nul_position() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_46_a_nul_is_refused_and_located() {
        assert_eq!(exec_string(b"ab\0c"), Err(ExecStringError::Nul { offset: 2 }));
        assert_eq!(exec_strings([&b"ok"[..], b"\0"]), Err(ExecStringError::Nul { offset: 0 }));
        assert_eq!(env_entry(b"A", b"x\0"), Err(ExecStringError::Nul { offset: 3 }));
        assert_eq!(env_entry(b"A\0", b"x"), Err(ExecStringError::Nul { offset: 1 }));
    }

    #[test]
    fn fault_47_a_name_is_not_empty_and_holds_no_equals_sign() {
        assert_eq!(env_entry(b"", b"x"), Err(ExecStringError::EmptyName));
        assert_eq!(env_entry(b"A=B", b"x"), Err(ExecStringError::EqualsInName));
    }

    #[test]
    fn bytes_that_are_not_utf8_and_equals_signs_in_values_are_kept() {
        assert_eq!(env_entry(b"A", b"b=\xff").unwrap().as_bytes(), b"A=b=\xff");
        assert_eq!(
            exec_strings([&b"\xfe"[..], b""]).unwrap(),
            [c"\xfe".into(), CString::default()]
        );
    }
}
