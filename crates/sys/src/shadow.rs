//! What the shadow database says about an account, without what it says about the password.

use rustix::io::Errno;
use std::ffi::{CString, OsStr, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;

const BUFFER_BYTES_MIN: usize = 1024;
/// An entry that needs more than this is taken for a fault of its directory service.
const BUFFER_BYTES_MAX: usize = 1 << 16;

/// An entry of the shadow database (shadow(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowEntry {
    /// Whether there is a password that somebody has locked: a `!` before the rest of it. A `!` (or
    /// `!!`) alone is no password at all, and what useradd(8) gives to every new account.
    pub locked: bool,
    /// The day, counted from 1970-01-01, after which the account is not to be used, if there is one.
    pub expires_on_day: Option<i64>,
}

/// The entry of this name, or `None` if there is none. For root only; the password is wiped.
///
/// May block on the network where the database is a directory service.
///
/// # Errors
/// What getspnam_r(3) gives: `EACCES` for who may not read it.
pub fn shadow_by_name(name: &OsStr) -> io::Result<Option<ShadowEntry>> {
    let Ok(name) = CString::new(name.as_bytes()) else { return Ok(None) };
    let mut bytes = BUFFER_BYTES_MIN;
    loop {
        let mut buffer: Vec<c_char> = vec![0; bytes];
        let mut entry = MaybeUninit::<libc::spwd>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: the name is a C string, all other pointers are to writable memory of the right
        // types, and the length is that of the buffer; all of it outlives the call.
        let code = unsafe {
            libc::getspnam_r(
                name.as_ptr(),
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            )
        };
        let result = match code {
            0 if found.is_null() => Ok(None),
            0 => {
                // SAFETY: on success with a result the call has filled in the entry.
                let entry = unsafe { entry.assume_init() };
                Ok(Some(entry_of(&entry)))
            }
            code => Err(Errno::from_raw_os_error(code)),
        };
        wipe(&mut buffer);
        match result {
            Err(Errno::RANGE) if bytes < BUFFER_BYTES_MAX => bytes *= 2,
            Err(Errno::INTR) => {}
            // Some name services report "not found" as one of these instead of a null result.
            Err(Errno::NOENT | Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(found) => return Ok(found),
        }
    }
}

/// The password points into the lookup's buffer, which is still alive here.
fn entry_of(entry: &libc::spwd) -> ShadowEntry {
    let locked = if entry.sp_pwdp.is_null() {
        false
    } else {
        // SAFETY: a field of a filled-in entry is null or a C string in the lookup's buffer.
        is_locked(unsafe { std::ffi::CStr::from_ptr(entry.sp_pwdp) }.to_bytes())
    };
    // The type is that of the C library: 64 bits, or 32 on a machine of 32 bits.
    #[expect(clippy::useless_conversion, reason = "needed where a long has 32 bits")]
    let day = i64::from(entry.sp_expire);
    ShadowEntry { locked, expires_on_day: (day != -1).then_some(day) }
}

fn is_locked(password: &[u8]) -> bool {
    password.first() == Some(&b'!') && password.iter().any(|byte| *byte != b'!')
}

/// What is not read again could be optimised away; what passes through `black_box` is not.
fn wipe(buffer: &mut [c_char]) {
    buffer.fill(0);
    std::hint::black_box(buffer);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_somebody_has_locked_is_not_one_that_was_never_set() {
        for locked in ["!$6$salt$hash", "!*", "!x", "!!x"] {
            assert!(is_locked(locked.as_bytes()), "{locked}");
        }
        for open in ["", "!", "!!", "*", "$6$salt$hash", "x!"] {
            assert!(!is_locked(open.as_bytes()), "{open}");
        }
    }

    #[test]
    fn nobody_has_an_impossible_name() {
        if crate::users::effective_uid() != 0 {
            eprintln!("SKIPPED, only root can read the shadow database");
            return;
        }
        for name in ["no such user", "a\0b"] {
            assert_eq!(shadow_by_name(OsStr::new(name)).unwrap(), None, "{name:?}");
        }
        assert!(shadow_by_name(OsStr::new("root")).unwrap().is_some());
    }
}
