//! Reads a plugin's header from its file, without running any of the file's code.

use std::fs::File;
use std::io;
use std::path::Path;

use object::elf::{
    EM_386, EM_AARCH64, EM_ARM, EM_PPC64, EM_RISCV, EM_X86_64, ET_CORE, ET_DYN, ET_EXEC, ET_REL, FileType, Machine,
};
use object::read::elf::{ElfFile64, FileHeader as _};
use object::{Object as _, ObjectSection as _, ReadCache, ReadRef};

use super::{Header, LoadError, SECTION};

/// The machine that this program runs on.
const MACHINE: Machine = if cfg!(target_arch = "aarch64") { EM_AARCH64 } else { EM_X86_64 };

/// Reads the header of the plugin at `path`. Whether it fits this host is [`mismatches`](super::mismatches)'s to say.
///
/// # Errors
/// A file that cannot be read or is no plugin.
pub fn read_header(path: &Path) -> Result<Header, LoadError> {
    let file = open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound if !path.is_symlink() => LoadError::NotFound { path: path.into() },
        _ => LoadError::Unreadable { path: path.into(), source },
    })?;
    header_of_elf(&ReadCache::new(file)).map_err(|reason| LoadError::NotAPlugin { path: path.into(), reason })
}

/// Opens a regular file.
fn open(path: &Path) -> io::Result<File> {
    let metadata = std::fs::metadata(path).map_err(|error| match std::fs::read_link(path) {
        Ok(target) if error.kind() == io::ErrorKind::NotFound => {
            io::Error::new(error.kind(), format!("a link to {}, which does not exist", target.display()))
        }
        _ => error,
    })?;
    // A folder opens like a file and fails only at the first read, with a less clear message; a pipe waits for a writer.
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::other("neither a file nor a link to one"));
    }
    File::open(path)
}

/// Reads the header out of an ELF file's bytes, whatever they are.
///
/// # Errors
/// One line that says what the bytes are instead.
pub fn header_of_elf<'data, R: ReadRef<'data>>(data: R) -> Result<Header, String> {
    let start: &[u8] = data.read_bytes_at(0, data.len().unwrap_or(0).min(20)).unwrap_or_default();
    check_start(start)?;
    let damaged = |error: object::Error| format!("a truncated or damaged ELF file ({error})");
    let file = ElfFile64::<object::Endianness, R>::parse(data).map_err(damaged)?;
    let kind = file.elf_header().e_type(file.endian());
    if kind != ET_DYN {
        return Err(format!("an ELF file of type {}, not a dynamic library", kind_name(kind)));
    }
    let section = file.section_by_name(SECTION).ok_or_else(|| {
        format!("a library, but no AdvDMD plugin: it has no section `{SECTION}` (does its crate root call `export_plugin!()`?)")
    })?;
    let bytes = section.data().map_err(damaged)?;
    let header = Header::parse(bytes).map_err(|error| error.to_string())?;
    if let Some(Ok(other)) = bytes.get(header.size()..).map(Header::parse) {
        let (first, second) = (header.name(), other.name());
        return Err(format!(
            "two plugins in one library, `{first}` and `{second}`: move what they share to a crate without `export_plugin!()`"
        ));
    }
    Ok(header)
}

/// Whether the first bytes are those of an ELF file for this machine.
fn check_start(start: &[u8]) -> Result<(), String> {
    if start.is_empty() {
        return Err("an empty file".to_owned());
    }
    if !start.starts_with(b"\x7fELF") {
        let text = start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
        let beginning = String::from_utf8_lossy(start);
        return Err(if text {
            format!("a text file (it begins with {beginning:?}), not a dynamic library")
        } else {
            format!("not an ELF file (it begins with {beginning:?})")
        });
    }
    // The machine stands at the same place in 32- and 64-bit files; byte 5 tells the byte order.
    let machine = match start.get(18..20) {
        None => return Err("a truncated or damaged ELF file (it ends within its header)".to_owned()),
        Some(bytes) if start[5] == 2 => u16::from_be_bytes([bytes[0], bytes[1]]),
        Some(bytes) => u16::from_le_bytes([bytes[0], bytes[1]]),
    };
    let machine = Machine(machine);
    if machine == MACHINE {
        Ok(())
    } else {
        Err(format!("a library for {}, this program runs on {}", machine_name(machine), machine_name(MACHINE)))
    }
}

fn machine_name(machine: Machine) -> String {
    match machine {
        EM_386 => "x86 (32 bits)".to_owned(),
        EM_X86_64 => "x86_64".to_owned(),
        EM_ARM => "arm (32 bits)".to_owned(),
        EM_AARCH64 => "aarch64".to_owned(),
        EM_PPC64 => "powerpc64".to_owned(),
        EM_RISCV => "riscv".to_owned(),
        Machine(other) => format!("machine {other}"),
    }
}

fn kind_name(kind: FileType) -> String {
    match kind {
        ET_REL => "object".to_owned(),
        ET_EXEC => "executable".to_owned(),
        ET_CORE => "core dump".to_owned(),
        FileType(other) => other.to_string(),
    }
}
