//! What the next version of the protocol would append, as replacements of text in the SDK: a function to each table that a
//! reward and a sampler use, a key to what crosses as JSON, and another version of the product.
//!
//! Nothing was released before protocol 1.0, so this is how the rule "append, never move" is held to. When a text is no
//! longer found, the SDK has changed there: write the replacement for what stands there now.

/// File below the copy, the text in it, which stands there once, and what takes its place.
pub const EDITS: &[(&str, &str, &str)] = &[
    // The product's version is another matter than the protocol's, even where it says that nothing fits.
    ("Cargo.toml", "\nversion = \"0.1.0\"", "\nversion = \"0.2.0\""),
    ("sdk/src/abi/header.rs", "Protocol { major: 1, minor: 0 }", "Protocol { major: 1, minor: 1 }"),
    // A plugin as a whole.
    (
        "sdk/src/abi/root.rs",
        "backbone: *mut BackboneObject, out: &Sink) -> Status,\n}",
        "backbone: *mut BackboneObject, out: &Sink) -> Status,\n
    /// Text: about the plugin.
    pub about: unsafe extern \"C\" fn(out: &Sink) -> Status,\n}",
    ),
    (
        "sdk/src/abi/root.rs",
        "    backbone: backbone_fn_wrapper,\n});",
        "    backbone: backbone_fn_wrapper,\n    about: about_fn_wrapper,\n});\n
unsafe extern \"C\" fn about_fn_wrapper(out: &Sink) -> Status {
    guard(out, || out.json(&\"a plugin of the next protocol\"))
}",
    ),
    (
        "sdk/src/abi/loader.rs",
        "    /// The file.\n    pub fn path(",
        "    /// About the plugin.
    pub fn about(&self) -> Option<String> {
        let about = self.vtable.about()?;
        call(|out| unsafe { about(out) }).ok()?.json(\"about\").ok()
    }\n
    /// The file.\n    pub fn path(",
    ),
    // A reward.
    (
        "sdk/src/abi/reward.rs",
        "learner_generator_loss: unsafe extern \"C\" fn(this: *mut c_void, fake: &LentBatch<'_>, out: &Sink) -> Status,\n}",
        "learner_generator_loss: unsafe extern \"C\" fn(this: *mut c_void, fake: &LentBatch<'_>, out: &Sink) -> Status,
    /// Text: about the reward.
    pub describe: unsafe extern \"C\" fn(this: *mut c_void, out: &Sink) -> Status,\n}",
    ),
    (
        "sdk/src/abi/reward.rs",
        "    learner_generator_loss: torch::learner_generator_loss_fn_wrapper,\n});",
        "    learner_generator_loss: torch::learner_generator_loss_fn_wrapper,
    describe: describe_fn_wrapper,\n});\n
unsafe extern \"C\" fn describe_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
    let reward = unsafe { reward(this) };
    guard(out, || out.json(&reward.describe()))
}",
    ),
    (
        "sdk/src/abi/foreign_reward.rs",
        "impl Reward for ForeignReward {",
        "impl Reward for ForeignReward {
    fn describe(&self) -> String {
        let RewardObject { data, vtable } = self.object;
        let Some(describe) = vtable.describe() else { return \"not described\".to_owned() };
        call(|out| unsafe { describe(data, out) }).unwrap().json(\"describe\").unwrap()
    }\n",
    ),
    (
        "sdk/src/reward.rs",
        "pub trait Reward: Send {",
        "pub trait Reward: Send {
    /// About the reward.
    fn describe(&self) -> String {
        \"not described\".to_owned()
    }\n",
    ),
    // What crosses as JSON.
    (
        "sdk/src/reward.rs",
        "    pub groupwise: bool,\n}",
        "    pub groupwise: bool,\n    /// New.\n    #[serde(default)]\n    pub alpha: bool,\n}",
    ),
    (
        "sdk/src/reward.rs",
        "    pub backbone: Option<BackboneSpec>,\n}",
        "    pub backbone: Option<BackboneSpec>,\n    /// New.\n    #[serde(default)]\n    pub run: String,\n}",
    ),
    // A sampler.
    (
        "sdk/src/abi/sampler.rs",
        "    pub order: unsafe extern \"C\" fn(this: *mut c_void, out: &Sink) -> Status,\n}",
        "    pub order: unsafe extern \"C\" fn(this: *mut c_void, out: &Sink) -> Status,
    /// Text: its title.
    pub title: unsafe extern \"C\" fn(this: *mut c_void, out: &Sink) -> Status,\n}",
    ),
    (
        "sdk/src/abi/sampler.rs",
        "    order: order_fn_wrapper,\n});",
        "    order: order_fn_wrapper,\n    title: title_fn_wrapper,\n});\n
unsafe extern \"C\" fn title_fn_wrapper(this: *mut c_void, out: &Sink) -> Status {
    let sampler = unsafe { sampler(this) };
    guard(out, || out.json(&sampler.title()))
}",
    ),
    (
        "sdk/src/abi/sampler.rs",
        "    impl Sampler for ForeignSampler {",
        "    impl Sampler for ForeignSampler {
        fn title(&self) -> String {
            let SamplerObject { data, vtable } = self.object;
            let Some(title) = vtable.title() else { return \"untitled\".to_owned() };
            call(|out| unsafe { title(data, out) }).unwrap().json(\"title\").unwrap()
        }\n",
    ),
    (
        "sdk/src/sampler.rs",
        "pub trait Sampler: Send {",
        "pub trait Sampler: Send {
    /// Its title.
    fn title(&self) -> String {
        \"untitled\".to_owned()
    }\n",
    ),
    // What holds all of it against the golden file.
    (
        "sdk/src/abi/layout.rs",
        "PluginVtable { manifest, connect, set_log_level, reward, sampler, backbone }",
        "PluginVtable { manifest, connect, set_log_level, reward, sampler, backbone, about }",
    ),
    ("sdk/src/abi/layout.rs", "            learner_generator_loss\n", "            learner_generator_loss, describe\n"),
    (
        "sdk/src/abi/layout.rs",
        "transition, preserves_marginals, order }",
        "transition, preserves_marginals, order, title }",
    ),
    ("sdk/src/abi/layout.rs", "span_exit, span_close }", "span_exit, span_close, connected }"),
    // The host's table: here the plugin is the side that does without.
    (
        "sdk/src/abi/trace.rs",
        "    pub span_close: unsafe extern \"C\" fn(ctx: *const c_void, span: u64),\n}",
        "    pub span_close: unsafe extern \"C\" fn(ctx: *const c_void, span: u64),
    /// A plugin is connected.
    pub connected: unsafe extern \"C\" fn(ctx: *const c_void),\n}",
    ),
    (
        "sdk/src/abi/trace.rs",
        "span_exit, span_close });",
        "span_exit, span_close, connected });\n
    unsafe extern \"C\" fn connected(ctx: *const c_void) {
        let plugin = unsafe { &*ctx.cast::<String>() };
        eprintln!(\"{plugin} is connected\");
    }",
    ),
    (
        "sdk/src/abi/trace.rs",
        "pub(super) unsafe fn install(log: HostLog) {",
        "pub(super) unsafe fn install(log: HostLog) {
    if let Some(connected) = log.vtable.connected() {
        unsafe { connected(log.ctx) }
    }",
    ),
];
