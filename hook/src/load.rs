//! From a linked object to a loaded program: the steps that are the same at every hook.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Once;

use libbpf_rs::{AsRawLibbpf, MapCore as _, Object, ObjectBuilder, OpenObject};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::inline::{Code, Inlined};
use crate::{Error, Linked, Result, sys};

/// Enough for the log of a program near the verifier's limit.
const LOG_BYTES: usize = 4 << 20;

/// A linked policy, opened and not yet loaded.
#[derive(Debug)]
pub struct PolicyObject {
    object: OpenObject,
    /// Of somebody who is not root.
    is_tenants: bool,
    /// Where the kernel writes while it verifies: must outlive the load.
    log: Vec<u8>,
}

impl PolicyObject {
    /// Opens a linked policy and gives it the app's Maps. Where the app is not root's, the
    /// kernel verifies it as it does for those who may not read kernel memory.
    ///
    /// # Errors
    /// [`Error::Kernel`] when libbpf cannot read the object.
    pub fn open(linked: &Linked) -> Result<Self> {
        let mut this = Self::open_bytes(&linked.object, &linked.name)?;
        this.is_tenants = linked.owner != 0;
        for (name, fd) in &linked.maps {
            this.share(name, fd.as_fd())?;
        }
        Ok(this)
    }

    /// Opens an object of ours that has no user half (a dispatcher, say).
    ///
    /// # Errors
    /// [`Error::Kernel`] when libbpf cannot read the object.
    pub fn open_bytes(bytes: &[u8], name: &str) -> Result<Self> {
        route_libbpf_messages();
        let object = ObjectBuilder::default()
            .name(name)
            .and_then(|builder| builder.open_memory(bytes))
            .map_err(|e| Error::bpf(format!("open the BPF object of '{name}'"), &e))?;
        Ok(Self { object, is_tenants: false, log: Vec::new() })
    }

    /// Replaces the object's own `map` by one that exists. A map the object
    /// does not have is no error: the linker drops what a policy does not use.
    ///
    /// # Errors
    /// [`Error::Kernel`] when type or sizes differ.
    pub fn share(&mut self, map: &str, fd: BorrowedFd<'_>) -> Result<()> {
        for mut candidate in self.object.maps_mut() {
            if candidate.name() == map {
                return candidate
                    .reuse_fd(fd)
                    .map_err(|e| Error::bpf(format!("share the Map '{map}'"), &e));
            }
        }
        Ok(())
    }

    /// The opened object, for steps only one hook needs.
    pub fn object_mut(&mut self) -> &mut OpenObject {
        &mut self.object
    }

    /// Loads the object; `program` is the one whose verifier log matters.
    ///
    /// # Errors
    /// [`Error::Verifier`] with the kernel's log, or [`Error::Kernel`].
    pub fn load(mut self, program: &str) -> Result<LoadedProgram> {
        self.log.resize(LOG_BYTES, 0);
        for mut candidate in self.object.progs_mut() {
            if candidate.name() == program {
                // Of several in a file (SEC("?..."), see libbpf) only that one.
                candidate.set_autoload(true);
                // SAFETY: the program belongs to self.object and the buffer to
                // self.log; both live until load() below has returned.
                let err = unsafe {
                    libbpf_sys::bpf_program__set_log_buf(
                        candidate.as_libbpf_object().as_ptr(),
                        self.log.as_mut_ptr().cast(),
                        self.log.len() as libbpf_sys::size_t,
                    )
                };
                if err != 0 {
                    let reason = io::Error::from_raw_os_error(-err);
                    return Err(Error::kernel("set the verifier's log buffer", reason));
                }
            }
        }
        // At level 0 libbpf asks for a log only when the load failed, so that no large program
        // is refused because its log does not fit.
        let log = self.log;
        let _without = if self.is_tenants { Some(WithoutPerfmon::enter()?) } else { None };
        let object = self.object.load().map_err(|e| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            let text = String::from_utf8_lossy(&log[..end]).into_owned();
            match Error::bpf(format!("load '{program}'"), &e) {
                // The verifier also reports statistics of programs it accepted.
                Error::Kernel { source, .. } if refused(&text) => {
                    Error::Verifier { program: program.to_owned(), log: text, source }
                }
                other => other,
            }
        })?;
        Ok(LoadedProgram { object, program: program.to_owned() })
    }
}

/// This thread without the capabilities with which the verifier lets a program give kernel
/// addresses away and read what was left on the stack, and asks for no care with speculation.
struct WithoutPerfmon(CapabilitySets);

impl WithoutPerfmon {
    fn enter() -> Result<Self> {
        let failed = |e: rustix::io::Errno| {
            Error::kernel("load as an ordinary user's: change this thread's capabilities", e)
        };
        let before = capabilities(None).map_err(failed)?;
        let mut without = before;
        without.effective.remove(CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN);
        set_capabilities(None, without).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for WithoutPerfmon {
    fn drop(&mut self) {
        // They stayed permitted, so that nothing refuses it.
        set_capabilities(None, self.0)
            .unwrap_or_else(|e| log::error!("this thread has lost its capabilities: {e}"));
    }
}

/// An accepted program's log is its statistics, and what its global functions are.
fn refused(log: &str) -> bool {
    let accepted = |line: &str| line.starts_with("processed ") || line.starts_with("Func#");
    log.lines().any(|line| !line.is_empty() && !accepted(line))
}

/// A loaded object and the name of the program in it that matters.
#[derive(Debug)]
pub struct LoadedProgram {
    object: Object,
    program: String,
}

impl LoadedProgram {
    /// The loaded object.
    #[must_use]
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// The loaded object, mutable.
    pub fn object_mut(&mut self) -> &mut Object {
        &mut self.object
    }

    /// Calls `f` with the program's fd.
    ///
    /// # Errors
    /// [`Error::Defect`] when the object has no such program, else what `f` says.
    pub fn with_fd<T>(&self, f: impl FnOnce(BorrowedFd<'_>) -> Result<T>) -> Result<T> {
        for program in self.object.progs() {
            if program.name() == self.program.as_str() {
                return f(program.as_fd());
            }
        }
        Err(Error::Defect(format!("program '{}' is not in its object", self.program)))
    }

    /// Calls `f` with the fd of a map of the object.
    ///
    /// # Errors
    /// [`Error::Defect`] when the object has no such map, else what `f` says.
    pub fn with_map<T>(&self, map: &str, f: impl FnOnce(BorrowedFd<'_>) -> Result<T>) -> Result<T> {
        for candidate in self.object.maps() {
            if candidate.name() == map {
                return f(candidate.as_fd());
            }
        }
        Err(Error::Defect(format!("map '{map}' is not in its object")))
    }

    /// Pins the program.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the path.
    pub fn pin(&self, path: &Path) -> Result<()> {
        self.with_fd(|fd| sys::obj_pin(fd, path))
    }

    /// Pins a map of the object.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the path.
    pub fn pin_map(&self, map: &str, path: &Path) -> Result<()> {
        self.with_map(map, |fd| sys::obj_pin(fd, path))
    }
}

/// Writes `value` over the constant `name` in the read-only data of a linked object, in the
/// file image, before it is opened. Returns false when there is no such constant.
///
/// # Errors
/// [`Error::Usage`] when the sizes differ or the object is no ELF file.
pub fn set_constant(image: &mut [u8], name: &str, value: &[u8]) -> Result<bool> {
    let Some((offset, size)) = constant_at(image, name)? else {
        return Ok(false);
    };
    if size != value.len() {
        return Err(Error::Usage(format!("{name} has {size} bytes, not {}", value.len())));
    }
    image[offset..offset + size].copy_from_slice(value);
    Ok(true)
}

fn constant_at(image: &[u8], name: &str) -> Result<Option<(usize, usize)>> {
    let file =
        object::File::parse(image).map_err(|e| Error::Usage(format!("not a BPF object: {e}")))?;
    let Some(symbol) = file.symbols().find(|s| s.name() == Ok(name) && s.size() > 0) else {
        return Ok(None);
    };
    let Some(section) = symbol.section_index().and_then(|i| file.section_by_index(i).ok()) else {
        return Ok(None);
    };
    if !section.name().is_ok_and(|n| n == ".rodata" || n.starts_with(".rodata.")) {
        return Ok(None);
    }
    let Some((start, len)) = section.file_range() else {
        return Ok(None);
    };
    let place = || {
        let at = symbol.address().checked_sub(section.address())?;
        at.checked_add(symbol.size()).filter(|&end| end <= len)?;
        let (from, size) = (start.checked_add(at)?, symbol.size());
        let (from, size) = (usize::try_from(from).ok()?, usize::try_from(size).ok()?);
        from.checked_add(size).filter(|&end| end <= image.len())?;
        Some((from, size))
    };
    let outside =
        || Error::Usage(format!("{name} lies outside its section, or that outside the file"));
    place().map(Some).ok_or_else(outside)
}

/// Has libbpf put `schedule()` in the place of its call in each program of this section that it
/// loads in this process; where that is not possible the program is loaded as it is.
///
/// The types are those that libbpf gives the section's programs. Once for a section, and before
/// any object is open: libbpf keeps no lock for it.
pub fn inline_schedule(
    section: &CStr,
    program: libbpf_sys::bpf_prog_type,
    attach: libbpf_sys::bpf_attach_type,
) {
    let opts = libbpf_sys::libbpf_prog_handler_opts {
        sz: size_of::<libbpf_sys::libbpf_prog_handler_opts>() as libbpf_sys::size_t,
        prog_prepare_load_fn: Some(prepare),
        ..Default::default()
    };
    // SAFETY: both are read during the call, and the function is there for ever.
    let id = unsafe {
        libbpf_sys::libbpf_register_prog_handler(section.as_ptr(), program, attach, &raw const opts)
    };
    if id < 0 {
        let why = io::Error::from_raw_os_error(-id);
        log::warn!("{}: policies are loaded as they are: {why}", section.to_string_lossy());
    }
}

/// A program's instructions, and what is told of them, as the kernel takes them.
struct Records {
    instructions: Vec<[u8; 8]>,
    functions: Vec<[u32; 2]>,
    lines: Vec<[u32; 4]>,
}

impl Records {
    fn of(code: Code) -> Self {
        Self {
            instructions: code.instructions,
            functions: code.functions.iter().map(|&(at, about)| [at as u32, about]).collect(),
            lines: code.lines.iter().map(|&(at, [a, b, c])| [at as u32, a, b, c]).collect(),
        }
    }

    /// For as long as these live.
    fn tell(&self, opts: &mut libbpf_sys::bpf_prog_load_opts) {
        opts.func_info = self.functions.as_ptr().cast();
        opts.func_info_cnt = self.functions.len() as u32;
        opts.line_info = self.lines.as_ptr().cast();
        opts.line_info_cnt = self.lines.len() as u32;
    }

    /// Whether the kernel accepts them as that program. Why not is told by the load itself, of
    /// the program as it was.
    fn are_accepted(
        &self,
        program: *const libbpf_sys::bpf_program,
        opts: &libbpf_sys::bpf_prog_load_opts,
    ) -> bool {
        let mut opts = *opts;
        self.tell(&mut opts);
        // SAFETY: the program is libbpf's, all else lives for the call.
        let fd = unsafe {
            libbpf_sys::bpf_prog_load(
                libbpf_sys::bpf_program__type(program),
                libbpf_sys::bpf_program__name(program),
                c"GPL".as_ptr(),
                self.instructions.as_ptr().cast(),
                self.instructions.len() as libbpf_sys::size_t,
                &raw mut opts,
            )
        };
        if fd < 0 {
            log::debug!("schedule() is called: {}", io::Error::from_raw_os_error(-fd));
            return false;
        }
        // SAFETY: it is ours.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        true
    }
}

thread_local! {
    /// What libbpf gives the kernel after [`prepare`] has returned.
    static TOLD: RefCell<Option<Records>> = const { RefCell::new(None) };
}

/// libbpf asks it about a program that is ready to be loaded.
unsafe extern "C" fn prepare(
    program: *mut libbpf_sys::bpf_program,
    opts: *mut libbpf_sys::bpf_prog_load_opts,
    _cookie: std::os::raw::c_long,
) -> c_int {
    // SAFETY: libbpf's, for the call.
    let opts = unsafe { &mut *opts };
    if opts.func_info_rec_size != 8 || opts.line_info_rec_size != 16 {
        return 0;
    }
    // SAFETY: as many records of these sizes as libbpf says, and instructions of 8 bytes.
    let (instructions, functions, lines) = unsafe {
        (
            std::slice::from_raw_parts(
                libbpf_sys::bpf_program__insns(program).cast::<[u8; 8]>(),
                libbpf_sys::bpf_program__insn_cnt(program) as usize,
            ),
            std::slice::from_raw_parts(
                opts.func_info.cast::<[u32; 2]>(),
                opts.func_info_cnt as usize,
            ),
            std::slice::from_raw_parts(
                opts.line_info.cast::<[u32; 4]>(),
                opts.line_info_cnt as usize,
            ),
        )
    };
    let code = Code {
        instructions: instructions.to_vec(),
        functions: functions.iter().map(|&[at, about]| (at as usize, about)).collect(),
        lines: lines.iter().map(|&[at, a, b, c]| (at as usize, [a, b, c])).collect(),
    };
    // A tenant's code is read here, and a panic may not reach libbpf.
    let inlined = std::panic::catch_unwind(|| code.inlined()).unwrap_or_default();
    let Some(Inlined { apart, code: inlined }) = inlined else { return 0 };
    let (apart, inlined) = (Records::of(apart), Records::of(inlined));
    // In this order: what the first says of the function holds in the second.
    if !apart.are_accepted(program, opts) || !inlined.are_accepted(program, opts) {
        return 0;
    }
    // SAFETY: libbpf copies the instructions, and is not to be told later than now.
    let err = unsafe {
        libbpf_sys::bpf_program__set_insns(
            program,
            inlined.instructions.as_ptr().cast_mut().cast(),
            inlined.instructions.len() as libbpf_sys::size_t,
        )
    };
    if err == 0 {
        inlined.tell(opts);
        TOLD.set(Some(inlined));
    }
    err
}

/// libbpf prints to stderr by default; we keep the verifier's log ourselves
/// and send the rest to the log crate. Called before anything that opens an object.
///
/// Not through `libbpf_rs::set_print`: that one panics, and so aborts, on a
/// message that is not UTF-8.
fn route_libbpf_messages() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print: unsafe extern "C" fn(_, _, *mut c_void) -> c_int = print;
        // SAFETY: libbpf's type says va_list by its platform's name; on every
        // platform BPF programs are loaded from it is passed as one pointer.
        unsafe {
            let print: libbpf_sys::libbpf_print_fn_t = std::mem::transmute(print);
            libbpf_sys::libbpf_set_print(print);
        }
    });
}

unsafe extern "C" {
    fn vsnprintf(to: *mut c_char, size: usize, format: *const c_char, args: *mut c_void) -> c_int;
}

unsafe extern "C" fn print(
    level: libbpf_sys::libbpf_print_level,
    format: *const c_char,
    args: *mut c_void,
) -> c_int {
    let level = match level {
        // libbpf warns about each failed step of a load; the error that we
        // return says it better.
        libbpf_sys::LIBBPF_WARN => log::Level::Debug,
        _ => log::Level::Trace,
    };
    if log::log_enabled!(target: "libbpf", level) {
        let mut text = [0u8; 1024];
        // SAFETY: format and args are libbpf's, made for the printf family;
        // the buffer's size is given and the result NUL-terminated.
        unsafe { vsnprintf(text.as_mut_ptr().cast(), text.len(), format, args) };
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        let text = String::from_utf8_lossy(&text[..end]);
        log::log!(target: "libbpf", level, "{}", text.trim_end());
    }
    0
}

/// A C string, with a clear error for a NUL inside.
pub(crate) fn c_string(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt as _;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::Usage(format!("{} contains a NUL byte", path.display())))
}
