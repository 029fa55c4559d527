//! Loads plugins from dynamic libraries.

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Write as _};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::IntoRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use abi_stable::StableAbi;
use abi_stable::abi_stability::PrefixStableAbi;
use abi_stable::abi_stability::abi_checking::{
    AbiInstability, AbiInstabilityError, CheckingGlobals, check_layout_compatibility_with_globals,
};
use abi_stable::prefix_type::{PrefixRefTrait, WithMetadata};
use abi_stable::type_layout::{TLData, TLFieldOrFunction, TypeLayout};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::Serialize;
use serde_json::Value;

use super::foreign_reward::ForeignReward;
use super::root::{Entry, PluginVtableRef};
use super::sampler::ForeignSampler;
use super::sink::call;
use super::trace::HostLog;
use super::{Header, LoadError, PluginVtable, RewardObject, SamplerObject, header_of_elf, mismatches, read_header};
use crate::trace::emit;
use crate::{Error, Manifest, Result, Reward, RewardInit, Sampler};

/// A loaded plugin. It stays loaded until the process ends: code that registered destructors or threads cannot be
/// unloaded safely.
pub struct Plugin {
    path: PathBuf,
    header: Header,
    manifest: Manifest,
    vtable: PluginVtableRef,
    log_level: AtomicU8,
}

impl Plugin {
    /// Loads the plugin at `path`. Its header is checked before any of its code runs.
    ///
    /// # Errors
    /// One readable line that begins with the path; one per field for a plugin that does not fit this host.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref();
        let header = read_header(path)?;
        // A bare file name would be searched for in the system's folders.
        let file = path.canonicalize().map_err(|source| LoadError::Unreadable { path: path.into(), source })?;
        Self::load(path, &header, &file)
    }

    /// Loads the plugin whose file at `path` was read as `bytes`, and no other: what became of the file since does not
    /// matter. They are loaded from a copy in memory that nobody can change, so the plugin does not find libraries that
    /// lie beside its file (`$ORIGIN`).
    ///
    /// # Errors
    /// As [`Plugin::open`].
    pub fn open_bytes(path: impl AsRef<Path>, bytes: &[u8]) -> Result<Self, LoadError> {
        let path = path.as_ref();
        let header = header_of_elf(bytes).map_err(|reason| LoadError::NotAPlugin { path: path.into(), reason })?;
        let copy = sealed(bytes).map_err(|source| LoadError::Unreadable { path: path.into(), source })?;
        // Stays open: the dynamic linker knows the library by this name, which another copy must not get.
        let name = format!("/proc/self/fd/{}", copy.into_raw_fd());
        Self::load(path, &header, Path::new(&name))
    }

    /// Loads the plugin at `path` from `file`, after its header was found to fit.
    fn load(path: &Path, header: &Header, file: &Path) -> Result<Self, LoadError> {
        let mismatches = mismatches(header, &Header::of_host());
        if !mismatches.is_empty() {
            return Err(LoadError::Incompatible { path: path.into(), mismatches });
        }
        let entry = link(path, header, file)?;
        // SAFETY: the header says that the symbol is an `Entry`; what it refers to is looked at only if it is there.
        let (layout, table) = unsafe { ((&raw const (*entry).layout).read(), &raw const (*entry).vtable) };
        check_layout(path, header, layout)?;
        // SAFETY: the table is that of this version of the protocol, or null.
        if let Some(function) = unsafe { absent_function(table) } {
            return Err(LoadError::NoFunction { path: path.into(), function });
        }
        // SAFETY: the table is there.
        let vtable = unsafe { table.read() };
        Self::start(path, header, vtable).map_err(|source| LoadError::Start { path: path.into(), source })
    }

    fn start(path: &Path, header: &Header, vtable: PluginVtableRef) -> Result<Self> {
        let log = HostLog::of_plugin(header.name());
        // SAFETY: the layout was checked, and the log lives as long as the process.
        call(|out| unsafe { vtable.connect()(log, out) })?;
        let plugin = Self {
            path: path.into(),
            header: *header,
            manifest: Manifest::default(),
            vtable,
            log_level: AtomicU8::new(0),
        };
        plugin.pass_log_level();
        // SAFETY: the layout was checked.
        let manifest = call(|out| unsafe { vtable.manifest()(out) })?.json("manifest")?;
        Ok(Self { manifest, ..plugin })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header, as it stands in the file.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The components.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Makes a reward of its table (a JSON object with a `type` key).
    ///
    /// # Errors
    /// An unknown type, unknown or missing keys, or what the reward refuses.
    pub fn reward(&self, config: &Value, init: &RewardInit) -> Result<Box<dyn Reward>> {
        let (config, init) = (config.to_string(), json(init)?);
        let function = self.vtable.reward();
        let object = make(|place: *mut RewardObject| {
            // SAFETY: the layout was checked, and `place` holds a reward.
            self.call(|out| unsafe { function(config.as_str().into(), init.as_str().into(), place, out) })?;
            // SAFETY: a function that returns no error has written the object.
            unsafe { check_functions(&raw const (*place).vtable) }
        })?;
        // SAFETY: the plugin has just made the object for us.
        Ok(Box::new(unsafe { ForeignReward::new(object) }?))
    }

    /// Makes a sampler of its table.
    ///
    /// # Errors
    /// As [`Plugin::reward`].
    pub fn sampler(&self, config: &Value) -> Result<Box<dyn Sampler>> {
        let config = config.to_string();
        let function = self.vtable.sampler();
        let object = make(|place: *mut SamplerObject| {
            // SAFETY: the layout was checked, and `place` holds a sampler.
            self.call(|out| unsafe { function(config.as_str().into(), place, out) })?;
            // SAFETY: a function that returns no error has written the object.
            unsafe { check_functions(&raw const (*place).vtable) }
        })?;
        // SAFETY: the plugin has just made the object for us.
        Ok(Box::new(unsafe { ForeignSampler::new(object) }?))
    }

    /// Makes a backbone of its table.
    ///
    /// # Errors
    /// As [`Plugin::reward`].
    #[cfg(feature = "torch")]
    pub fn backbone(&self, config: &Value, init: &crate::BackboneInit) -> Result<Box<dyn crate::Backbone>> {
        let (config, init) = (config.to_string(), json(init)?);
        let function = self.vtable.backbone();
        let object = make(|place| {
            // SAFETY: the layout was checked, and `place` holds a backbone.
            self.call(|out| unsafe { function(config.as_str().into(), init.as_str().into(), place, out) })
        })?;
        // SAFETY: the plugin has just made the object for us.
        Ok(Box::new(unsafe { super::backbone::ForeignBackbone::new(object) }?))
    }

    fn call(&self, function: impl FnOnce(&super::Sink) -> super::Status) -> Result<()> {
        self.pass_log_level();
        call(function).map(drop)
    }

    /// Tells the plugin how much the host logs now; it may have set up its log after loading plugins.
    fn pass_log_level(&self) {
        let level = emit::level();
        if self.log_level.swap(level, Ordering::Relaxed) != level {
            // SAFETY: the layout was checked.
            unsafe { self.vtable.set_log_level()(level) }
        }
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("path", &self.path).field("header", &self.header).finish_non_exhaustive()
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(Error::failed)
}

/// The object that `fill` writes if it succeeds.
fn make<T>(fill: impl FnOnce(*mut T) -> Result<()>) -> Result<T> {
    let mut place = MaybeUninit::uninit();
    fill(place.as_mut_ptr())?;
    // SAFETY: a function that returns no error has written the object.
    Ok(unsafe { place.assume_init() })
}

/// A file in memory with this content, which cannot change any more.
fn sealed(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("advdmd-plugin", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// Loads the library of the plugin at `path` from `file`, and finds its entry.
fn link(path: &Path, header: &Header, file: &Path) -> Result<*const Entry, LoadError> {
    // RTLD_NOW: a symbol that is missing should fail here, with its name, and not in the middle of a run.
    // SAFETY: loading runs the library's constructors. The header says that it is a plugin for this host, and a plugin
    // has the rights of the process by design.
    let library =
        unsafe { Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| link_error(path, file, &error))?;
    // SAFETY: the header says that the symbol is an `Entry`, whose layout this version of the protocol fixes.
    let entry = unsafe { library.get::<*const Entry>(header.entry()) }.map(Symbol::into_raw);
    // Never unloaded: objects, log and libtorch may refer to its code until the process ends.
    std::mem::forget(library);
    let entry = entry.ok().filter(|entry| !entry.is_null()).map(<*mut _>::cast::<Entry>);
    let entry = entry.ok_or_else(|| LoadError::NoEntry { path: path.into(), symbol: header.entry().to_owned() })?;
    Ok(entry)
}

/// The dynamic linker's message, with a library that is not found told apart.
fn link_error(path: &Path, file: &Path, error: &libloading::Error) -> LoadError {
    // libloading's own text stands in front of the system's, which is its source.
    let message = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let missing = message.split_once(": cannot open shared object file").map(|(library, _)| library);
    match missing {
        Some(library) if Path::new(library) != file => {
            LoadError::MissingLibrary { path: path.into(), library: library.to_owned() }
        }
        _ => LoadError::Link { path: path.into(), message },
    }
}

/// Where a table begins, in what a reference to one points to: behind two words of `abi_stable`'s.
const TABLE: usize = offset_of!(WithMetadata<PluginVtable>, value);

/// Name of the first function that a table lacks, or of the table where it is missing altogether: both can be written in C.
///
/// The first word of a table says which of the functions there are, bit by bit. An older table ends before those that were
/// appended since, and what lies behind its end is not looked at; a function within the prefix must be there, since the
/// accessors of those ask nothing.
///
/// # Safety
/// `reference` is where a reference of the type `R` to a table lies, or null in its place.
unsafe fn absent_function<R>(reference: *const R) -> Option<String>
where
    R: PrefixRefTrait<PrefixFields: PrefixStableAbi>,
{
    let layout = <R::PrefixFields as PrefixStableAbi>::LAYOUT;
    // SAFETY: the caller's.
    let found = unsafe { reference.cast::<*const u64>().read() };
    if found.is_null() {
        return Some(layout.name().to_owned());
    }
    let TLData::PrefixType(known) = layout.data() else { return None };
    // SAFETY: each table begins with the word of its functions.
    let there = unsafe { found.read() };
    let is_null = |index: usize| {
        // SAFETY: the table says that it holds this function, or null in its place.
        unsafe { found.byte_add(TABLE).cast::<*const c_void>().add(index).read().is_null() }
    };
    let is_absent = |index: usize| {
        if there >> index & 1 == 1 { is_null(index) } else { index < usize::from(known.first_suffix_field) }
    };
    let (_, name) = (0..).zip(known.fields.iter()).find(|(index, _)| is_absent(*index))?;
    Some(format!("{}.{}", layout.name(), name.name()))
}

/// The same as an error of the component that the table belongs to.
///
/// # Safety
/// As [`absent_function`].
unsafe fn check_functions<R>(reference: *const R) -> Result<()>
where
    R: PrefixRefTrait<PrefixFields: PrefixStableAbi>,
{
    // SAFETY: the caller's.
    match unsafe { absent_function(reference) } {
        Some(function) => Err(Error::failed(format!("the plugin gave no function `{function}`"))),
        None => Ok(()),
    }
}

/// Compares a plugin's functions with the host's, type by type.
fn check_layout(path: &Path, header: &Header, layout: Option<&'static TypeLayout>) -> Result<(), LoadError> {
    let Some(layout) = layout else {
        // C has nothing to describe its types with; the version of the protocol is its word for them.
        let is_c = header.sdk().is_empty() && header.rustc().is_empty();
        let error = || LoadError::NoLayout { path: path.into(), sdk: header.sdk().to_owned() };
        return if is_c { Ok(()) } else { Err(error()) };
    };
    let ours = <PluginVtableRef as StableAbi>::LAYOUT;
    // The tables of the newer side may have more functions; abi_stable expects that of its second argument.
    let plugin_is_older = header.protocol() < Header::of_host().protocol();
    let (fewer, more) = if plugin_is_older { (layout, ours) } else { (ours, layout) };
    // What it keeps from check to check would compare plugins with each other.
    let Err(found) = check_layout_compatibility_with_globals(fewer, more, &CheckingGlobals::new()) else {
        return Ok(());
    };
    // The protocol has a version of its own, so that of the SDK does not count.
    let counts = |error: &&AbiInstabilityError| {
        error.errs.iter().any(|cause| !matches!(cause, AbiInstability::PackageVersion(_)))
    };
    let errors: Vec<_> = found.errors.iter().filter(counts).collect();
    if errors.is_empty() {
        return Ok(());
    }
    tracing::debug!("{}: differences between the plugin's layout and the host's: {found}", path.display());
    Err(LoadError::Layout {
        path: path.into(),
        place: place(&errors),
        plugin: header.sdk().to_owned(),
        host: Header::of_host().sdk().to_owned(),
    })
}

/// Where the deepest difference is, as the names of fields and functions on the way there.
fn place(errors: &[&AbiInstabilityError]) -> String {
    let deepest = errors.iter().map(|error| &error.stack_trace).max_by_key(|trace| trace.len());
    let names = deepest.into_iter().flatten().map(|step| match step.expected {
        TLFieldOrFunction::Field(field) => field.name(),
        TLFieldOrFunction::Function(function) => function.name.as_str(),
    });
    // abi_stable names a function both as field and as function, parameters with a comma, and wrappers by an index.
    let mut names: Vec<_> = names.map(|name| name.trim_end_matches(',')).collect();
    names.retain(|name| name.parse::<usize>().is_err());
    names.dedup();
    names.join(".")
}

#[cfg(test)]
#[allow(dead_code, reason = "of the other table only the layout is used")]
#[allow(clippy::cast_ptr_alignment, reason = "what `StableAbi` derives for functions beyond the prefix")]
mod tests {
    use super::*;
    use crate::abi::{SamplerVtableRef, Sink};
    use abi_stable::std_types::RStr;

    /// [`PluginVtable`](crate::abi::PluginVtable) with one type changed.
    #[repr(C)]
    #[derive(StableAbi)]
    #[sabi(kind(Prefix(prefix_ref = OtherRef)))]
    struct PluginVtable {
        manifest: unsafe extern "C" fn(out: &Sink) -> crate::abi::Status,
        connect: unsafe extern "C" fn(log: HostLog, out: &Sink) -> crate::abi::Status,
        set_log_level: unsafe extern "C" fn(level: u32),
        #[sabi(last_prefix_field)]
        reward: unsafe extern "C" fn(
            config: RStr<'_>,
            init: RStr<'_>,
            reward: *mut RewardObject,
            out: &Sink,
        ) -> crate::abi::Status,
    }

    #[test]
    fn a_different_layout_is_refused_in_one_line() {
        let path = Path::new("libother.so");
        let check = |layout| check_layout(path, &Header::of_host(), Some(layout));
        assert!(check(<PluginVtableRef as StableAbi>::LAYOUT).is_ok());
        let error = check(<OtherRef as StableAbi>::LAYOUT).unwrap_err().to_string();
        let expected = "libother.so: its functions are laid out differently (at `set_log_level.level`; ";
        assert!(error.starts_with(expected) && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn only_c_may_leave_its_functions_undescribed() {
        let path = Path::new("libmine.so");
        let mut header = Header::of_host();
        let error = check_layout(path, &header, None).unwrap_err().to_string();
        let expected =
            "libmine.so: its entry does not describe its functions, as those of every plugin that is built with";
        assert!(error.starts_with(expected) && error.lines().count() == 1, "{error}");
        // What a header in C says: no SDK and no rustc.
        header.sdk.fill(0);
        assert!(check_layout(path, &header, None).is_err());
        header.rustc.fill(0);
        assert!(check_layout(path, &header, None).is_ok());
    }

    /// [`SamplerVtable`](crate::abi::SamplerVtable) as a later version may have it, at the end of its first two functions.
    #[repr(C)]
    #[derive(StableAbi)]
    #[sabi(kind(Prefix(prefix_ref = GrownRef)))]
    #[sabi(missing_field(option))]
    struct Grown {
        release: unsafe extern "C" fn(this: *mut c_void),
        #[sabi(last_prefix_field)]
        order: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> crate::abi::Status,
        title: unsafe extern "C" fn(this: *mut c_void, out: &Sink) -> crate::abi::Status,
    }

    /// What [`absent_function`] says of a table of these words.
    fn absent<R: PrefixRefTrait<PrefixFields: PrefixStableAbi>>(words: &[u64]) -> Option<String> {
        let table = words.as_ptr();
        // SAFETY: each word stands for a function that is not called.
        unsafe { absent_function((&raw const table).cast::<R>()) }
    }

    #[test]
    fn a_function_that_is_null_is_named() {
        // abi_stable's two words, then release, sigmas, transition, preserves_marginals, order.
        let name = absent::<SamplerVtableRef>;
        assert_eq!(name(&[0b1_1111, 0, 1, 1, 1, 1, 1]), None);
        assert_eq!(name(&[0b1_1111, 0, 1, 1, 0, 1, 1]).as_deref(), Some("SamplerVtable.transition"));
        // A table that does not own up to a function: its accessor would call what stands there.
        assert_eq!(name(&[0b0_1111, 0, 1, 1, 1, 1, 1]).as_deref(), Some("SamplerVtable.order"));
        let none = std::ptr::null::<u64>();
        // SAFETY: as above; there is no table.
        let absent = unsafe { absent_function((&raw const none).cast::<SamplerVtableRef>()) };
        assert_eq!(absent.as_deref(), Some("SamplerVtable"));
    }

    #[test]
    fn a_table_may_be_older_or_newer() {
        let name = absent::<GrownRef>;
        assert_eq!(name(&[0b111, 0, 1, 1, 1]), None);
        // Older: what lies behind its end is none of its functions.
        assert_eq!(name(&[0b11, 0, 1, 1, 0]), None);
        assert_eq!(name(&[0b11, 0, 1, 0, 0]).as_deref(), Some("Grown.order"));
        assert_eq!(name(&[0b01, 0, 1, 1, 1]).as_deref(), Some("Grown.order"));
        // What it says that it has, it must have.
        assert_eq!(name(&[0b111, 0, 1, 1, 0]).as_deref(), Some("Grown.title"));
        // Newer: more than is known here.
        assert_eq!(name(&[0b1111, 0, 1, 1, 1, 0]), None);
    }
}
