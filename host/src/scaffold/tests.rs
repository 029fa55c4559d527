use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;

const ALL: [(Kind, Language); 6] = [
    (Kind::Reward, Language::Rust),
    (Kind::Reward, Language::Torch),
    (Kind::Reward, Language::C),
    (Kind::Sampler, Language::Rust),
    (Kind::Sampler, Language::C),
    (Kind::Backbone, Language::Torch),
];

fn scaffold(kind: Kind, language: Language, folder: PathBuf) -> Scaffold {
    Scaffold { kind, name: "my-plugin".to_owned(), language, folder, sdk: None }
}

#[test]
fn every_file_is_filled_in() {
    let base = tempfile::tempdir().unwrap();
    for (index, (kind, language)) in ALL.into_iter().enumerate() {
        let folder = base.path().join(index.to_string());
        let written = scaffold(kind, language, folder.clone()).write().unwrap();
        for file in &written.files {
            let path = folder.join(file);
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(!text.contains("{{") && !text.contains("}}\"") && text.ends_with('\n'), "{}", path.display());
            if path.extension().is_some_and(|end| end == "toml") {
                text.parse::<toml::Table>().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        }
        assert_eq!(written.sdk.is_none(), language == Language::C);
        assert_eq!(written.libtorch.is_some(), language == Language::Torch);
        let readme = fs::read_to_string(folder.join("README.md")).unwrap();
        for command in &written.commands {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(readme.lines().any(|line| words(line).starts_with(&words(command))), "{command}\n{readme}");
        }
    }
}

#[test]
fn the_hot_path_of_a_reward_is_short() {
    for language in [Language::Rust, Language::Torch, Language::C] {
        let files = templates::of(Kind::Reward, language).unwrap();
        let (_, code) =
            files.iter().find(|(path, _)| *path == "src/lib.rs" || path.rsplit('.').next() == Some("c")).unwrap();
        let score = code.find(if language == Language::C { "/* Brightness" } else { "    /// One finite" }).unwrap();
        let end = ["static void release", "advdmd_sdk::register"].iter().find_map(|end| code.find(end)).unwrap();
        let lines = code[score..end].lines().count();
        assert!((10..40).contains(&lines), "{language:?}: {lines}");
    }
}

#[test]
fn nothing_is_overwritten() {
    let base = tempfile::tempdir().unwrap();
    fs::write(base.path().join("file"), "precious").unwrap();
    fs::create_dir(base.path().join("folder")).unwrap();
    for name in ["file", "folder"] {
        let error = scaffold(Kind::Reward, Language::C, base.path().join(name)).write().unwrap_err();
        assert!(error.to_string().ends_with(&format!("{name} exists already")), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
    assert_eq!(fs::read_to_string(base.path().join("file")).unwrap(), "precious");
}

#[test]
fn names_are_those_of_packages() {
    for good in ["a", "my-reward", "ab2", "clip-b-32"] {
        name::check(good).unwrap();
    }
    for (bad, better) in [
        ("MyReward", "`my-reward` would do"),
        ("my_reward", "`my-reward` would do"),
        ("my reward", "`my-reward` would do"),
        ("2fast", "`fast` would do"),
        ("-x-", "`x` would do"),
        ("../up", "`up` would do"),
        ("", "lower-case letters"),
        ("fn", "lower-case letters"),
        ("serde", "lower-case letters"),
        ("é", "lower-case letters"),
        (&"x".repeat(64), "lower-case letters"),
    ] {
        let Err(Error::Usage { hint: Some(hint), .. }) = name::check(bad) else { panic!("{bad:?} is accepted") };
        assert!(hint.starts_with(better), "{bad:?}: {hint}");
    }
}

#[test]
fn an_sdk_is_found_by_its_package() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let sdk = Sdk::Folder(checkout.join("sdk").canonicalize().unwrap());
    for named in [Some(checkout), Some(&*checkout.join("sdk")), None] {
        assert_eq!(Sdk::find(named).unwrap(), sdk);
    }
    let error = Sdk::find(Some(&checkout.join("host"))).unwrap_err();
    assert!(error.to_string().ends_with("host holds no package advdmd-sdk"), "{error}");
    assert_eq!(Sdk::Published("1.2.3").dependency("nn").unwrap(), "version = \"1.2.3\"");
    let odd = Sdk::Folder("/a \"b\\".into()).dependency("").unwrap();
    let table: toml::Table = odd.parse().unwrap();
    assert_eq!(table["path"].as_str(), Some("/a \"b\\"));
}

/// `make CFLAGS=...` takes the place of all that a Makefile says of `CFLAGS`.
#[test]
fn flags_of_the_command_line_leave_those_that_are_needed() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("c");
    scaffold(Kind::Reward, Language::C, folder.clone()).write().unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let example = base.path().join("example");
    fs::create_dir(&example).unwrap();
    for file in ["Makefile", "reward-symmetry.c"] {
        fs::copy(repository.join("examples/reward-symmetry-c").join(file), example.join(file)).unwrap();
    }
    let sdk = format!("SDK={}", repository.join("sdk/include").display());
    for (folder, library) in [(folder, "libmy_plugin.so"), (example, "libreward_symmetry.so")] {
        let output = Command::new("make").args(["CFLAGS=-O3 -Werror", &sdk]).current_dir(&folder).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && folder.join(library).exists(), "{said}");
        for flag in ["-std=c99", "-Wall", "-Wextra", "-fPIC", "-O3"] {
            assert!(said.split_whitespace().any(|word| word == flag), "{flag}: {said}");
        }
    }
}
