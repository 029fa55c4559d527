//! What set-up says of a LIBTORCH that cannot be used, word for word.

use std::path::Path;
use std::process::Command;

/// The message of `cargo xtask setup` with that LIBTORCH.
fn assert_says(name: &str, base: &Path, libtorch: &Path) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_xtask")).arg("setup").env("LIBTORCH", libtorch).output().expect("it starts");
    let code = output.status.code().expect("it ends by itself");
    let text = format!("{}exit code {code}", String::from_utf8_lossy(&output.stderr));
    let filters = [(base.to_str().expect("a temporary folder is UTF-8"), "[FOLDER]")];
    insta::with_settings!({ filters => filters, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

#[test]
fn a_libtorch_that_cannot_be_used() {
    let base = tempfile::tempdir().expect("a folder is made");
    let folder = base.path();
    assert_says("no-libtorch", folder, folder);
    assert_says("no-folder", folder, &folder.join("absent"));
    assert_says("not-absolute", folder, Path::new("libtorch"));
    for part in ["include/torch", "lib"] {
        std::fs::create_dir_all(folder.join(part)).expect("the folder is made");
    }
    for (file, text) in [("lib/libtorch_cpu.so", ""), ("lib/libc10.so", ""), ("build-version", "2.9.1+cpu\n")] {
        std::fs::write(folder.join(file), text).expect("the file is written");
    }
    assert_says("other-libtorch", folder, folder);
}
