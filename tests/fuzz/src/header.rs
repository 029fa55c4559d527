//! The header of a plugin, alone and in an ELF file.

use advdmd_sdk::abi::{HEADER_SIZE, Header, header_of_elf, mismatches};

use crate::assert_one_line;

/// Reads the bytes as a header and as a library.
///
/// # Panics
/// A header that is accepted without a name or an entry; a message of several lines.
pub fn header(bytes: &[u8]) {
    for read in [Header::parse(bytes).map_err(|error| error.to_string()), header_of_elf(bytes)] {
        match read {
            Ok(header) => {
                assert!(header.size() >= HEADER_SIZE && !header.name().is_empty() && !header.entry().is_empty());
                for mismatch in mismatches(&header, &Header::of_host()) {
                    assert_one_line(&mismatch.to_string());
                }
                for text in [header.sdk(), header.rustc(), header.name(), header.version()] {
                    assert!(text.is_empty() || text.chars().all(|c| !c.is_control()), "{text:?} goes to the terminal");
                }
            }
            Err(reason) => assert_one_line(&reason),
        }
    }
}
