//! Reads what a file is to be run by: the `#!` line of a script, the loader of an ELF binary.

use super::check_executable;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// How much of a file the kernel looks at to know what it is (`BINPRM_BUF_SIZE`).
const HEAD_BYTES: usize = 256;
/// How many scripts may be each other's interpreters before the kernel gives up.
const DEPTH_MAX: usize = 5;
/// The kernel's bound of a loader's path (`PATH_MAX`).
const LOADER_PATH_BYTES_MAX: u64 = 4096;
const ELF_MAGIC: &[u8] = b"\x7fELF";
const PROGRAM_HEADER_INTERP: u64 = 3;

/// The interpreter of `program` that is missing or not executable, if one is. Interpreters can be
/// scripts themselves, so the one that is named need not stand in `program`.
pub(super) fn broken_interpreter(program: &Path, cwd: &Path) -> Option<PathBuf> {
    let mut file = program.to_owned();
    for _ in 0..DEPTH_MAX {
        let interpreter = interpreter_of(&file).ok()??;
        file = cwd.join(&interpreter);
        if check_executable(&file).is_err() {
            return Some(interpreter);
        }
    }
    None
}

fn interpreter_of(path: &Path) -> io::Result<Option<PathBuf>> {
    let file = File::open(path)?;
    let mut head = [0; HEAD_BYTES];
    let count = read_up_to(&file, &mut head, 0)?;
    let head = head.get(..count).unwrap_or_default();
    if let Some(line) = head.strip_prefix(b"#!") {
        return Ok(script_interpreter(line));
    }
    if head.starts_with(ELF_MAGIC) {
        return elf_loader(&file, head);
    }
    Ok(None)
}

/// The first word of the line after `#!`, by the kernel's rules: blanks before it are skipped, and
/// it ends at a blank, the end of the line or a NUL.
fn script_interpreter(line: &[u8]) -> Option<PathBuf> {
    let start = line.iter().position(|byte| !matches!(byte, b' ' | b'\t'))?;
    let word = line.get(start..)?;
    let end = word
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\0'))
        .unwrap_or(word.len());
    let word = word.get(..end).filter(|word| !word.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(word)))
}

/// Where the fields of a header stand; the two widths of ELF differ in nothing else that we read.
struct ElfLayout {
    table_offset: (u64, u64),
    entry_bytes: u64,
    entry_count: u64,
    segment_offset: (u64, u64),
    segment_bytes: (u64, u64),
}

const ELF_32: ElfLayout = ElfLayout {
    table_offset: (28, 4),
    entry_bytes: 42,
    entry_count: 44,
    segment_offset: (4, 4),
    segment_bytes: (16, 4),
};

const ELF_64: ElfLayout = ElfLayout {
    table_offset: (32, 8),
    entry_bytes: 54,
    entry_count: 56,
    segment_offset: (8, 8),
    segment_bytes: (32, 8),
};

/// The path in the `PT_INTERP` segment, or `None` for a static binary or a damaged header.
fn elf_loader(file: &File, head: &[u8]) -> io::Result<Option<PathBuf>> {
    let layout = match head.get(4) {
        Some(1) => ELF_32,
        Some(2) => ELF_64,
        _ => return Ok(None),
    };
    let big_endian = head.get(5) == Some(&2);
    let field = |offset: u64, bytes: u64| read_integer(file, offset, bytes, big_endian);

    let table = field(layout.table_offset.0, layout.table_offset.1)?;
    let entry_bytes = field(layout.entry_bytes, 2)?;
    for index in 0..field(layout.entry_count, 2)? {
        // Both factors have 16 bits.
        let Some(entry) = table.checked_add(index * entry_bytes) else { return Ok(None) };
        let Some(last_field) = entry.checked_add(layout.segment_bytes.0) else { return Ok(None) };
        if field(entry, 4)? != PROGRAM_HEADER_INTERP {
            continue;
        }
        let start = field(entry + layout.segment_offset.0, layout.segment_offset.1)?;
        let count = field(last_field, layout.segment_bytes.1)?.min(LOADER_PATH_BYTES_MAX);
        let mut path = vec![0; usize::try_from(count).unwrap_or(0)];
        let count = read_up_to(file, &mut path, start)?;
        path.truncate(count);
        let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
        path.truncate(end);
        return Ok((!path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(&path))));
    }
    Ok(None)
}

/// An unsigned integer of at most 8 bytes.
fn read_integer(file: &File, offset: u64, bytes: u64, big_endian: bool) -> io::Result<u64> {
    let mut buffer = [0; 8];
    let count = usize::try_from(bytes).unwrap_or(0).min(buffer.len());
    if let Some(wanted) = buffer.get_mut(..count) {
        file.read_exact_at(wanted, offset)?;
        if big_endian {
            wanted.reverse();
        }
    }
    Ok(u64::from_le_bytes(buffer))
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // `filled` is at most the length of a buffer of ours.
        let at = offset.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_read_as_the_kernel_reads_it() {
        let cases: [(&[u8], Option<&str>); 7] = [
            (b"/bin/sh\necho", Some("/bin/sh")),
            (b" \t /usr/bin/env python3\n", Some("/usr/bin/env")),
            (b"/bin/sh", Some("/bin/sh")),
            (b"/bin/sh\r\necho", Some("/bin/sh\r")),
            (b"\n/bin/sh", None),
            (b"", None),
            (b"   ", None),
        ];
        for (line, expected) in cases {
            assert_eq!(script_interpreter(line), expected.map(PathBuf::from), "{line:?}");
        }
    }

    #[test]
    fn the_loader_of_a_dynamic_binary_is_found() {
        // Built by the same toolchain as everything here, so it is dynamic exactly with glibc.
        let loader = interpreter_of(&std::env::current_exe().unwrap()).unwrap();
        if cfg!(target_env = "gnu") {
            let loader = loader.unwrap();
            assert!(loader.to_string_lossy().contains("ld-linux"), "{loader:?}");
            assert_eq!(broken_interpreter(&std::env::current_exe().unwrap(), Path::new("/")), None);
        }
    }

    #[test]
    fn damaged_headers_give_no_loader_and_no_panic() {
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("damaged");
        for cut in [4, 5, 6, 40, 63, 64, 100] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(interpreter_of(&path).ok().flatten(), None, "cut at {cut}");
        }
        let mut far = whole[..64].to_vec();
        far[32..40].fill(0xff);
        std::fs::write(&path, far).unwrap();
        assert_eq!(interpreter_of(&path).ok().flatten(), None);
    }
}
