//! Random bytes from the kernel, fit for keys and identifiers.

use std::io;

/// Fills `buffer` with random bytes (getrandom(2), the urandom source).
///
/// Blocks only in the first moments of a boot, before the kernel has gathered any entropy.
///
/// # Errors
/// `ENOSYS` where a sandbox forbids the call; the buffer's content is then unspecified.
pub fn fill_random(buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // SAFETY: the pointer and the length are those of one exclusively borrowed slice.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => filled += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// `N` random bytes.
///
/// # Errors
/// As [`fill_random`].
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    fill_random(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ() {
        assert_ne!(random_bytes::<32>().unwrap(), random_bytes::<32>().unwrap());
    }

    #[test]
    fn a_large_buffer_is_filled_to_its_end() {
        // Over 256 bytes the call may be interrupted and return less than was asked.
        let mut buffer = vec![0; 100_000];
        fill_random(&mut buffer).unwrap();
        let tail = &buffer[buffer.len() - 64..];
        assert!(tail.iter().any(|byte| *byte != 0));
    }
}
