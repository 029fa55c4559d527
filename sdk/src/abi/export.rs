//! The macro that makes a crate a plugin.

/// Exports every component that the crate registered. Call it once, at the root of the plugin crate.
///
/// It emits data only: the [`Header`](crate::abi::Header) in a section of its own, and the
/// [`Entry`](crate::abi::Entry) under a symbol that carries the crate's name, so that several plugins can also be
/// linked into one program. Such a program says `use the_plugin as _;`, because a crate that nothing names is not
/// linked, and then finds the components in [`Manifest::of_this_binary`](crate::Manifest::of_this_binary).
///
/// A library holds one plugin: a crate that depends on another plugin's crate gets that one's components too, and the
/// host refuses it. Code to share belongs in a crate without this macro.
#[macro_export]
macro_rules! export_plugin {
    () => {
        #[cfg(panic = "abort")]
        compile_error!("a plugin must be built with panic = \"unwind\": the host turns its panics into errors");

        #[allow(unsafe_code, reason = "a symbol and a section with fixed names; the macro alone chooses them")]
        const _: () = {
            #[used]
            #[unsafe(link_section = ".advdmd")]
            static HEADER: $crate::abi::Header = $crate::abi::Header::of_plugin(
                env!("CARGO_PKG_NAME"),
                env!("CARGO_PKG_VERSION"),
                concat!("advdmd_plugin_", env!("CARGO_CRATE_NAME")),
            );

            #[unsafe(export_name = concat!("advdmd_plugin_", env!("CARGO_CRATE_NAME")))]
            static ENTRY: $crate::abi::Entry = $crate::abi::Entry::of_plugin(&HEADER);
        };
    };
}
