//! A policy that was checked. What is linked, loaded and hashed is written from this value
//! (`write.rs`), never copied from what a tenant sent.

use syrup_hook::Input;

/// The function that a policy is.
pub(crate) const SCHEDULE: &str = "schedule";

/// The variable that every trusted half defines for policies.
pub(crate) const NR_EXECUTORS: &str = "syrup_nr_executors";

/// The function that the trusted half of a packet hook defines for them.
pub(crate) const NR_EXECUTORS_HERE: &str = "syrup_nr_executors_here";

/// Of a function's name.
const MAX_SYMBOL_BYTES: usize = 63;

/// One instruction, as the kernel takes it.
pub(crate) type Instruction = [u8; 8];

/// A policy, in terms that no two readers understand differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checked {
    /// What `schedule()` takes.
    pub(crate) input: Input,
    /// They cover the code without gaps, in its order; one is `schedule`.
    pub(crate) functions: Vec<Function>,
    /// Calls between functions are relative, and references have an immediate of 0.
    pub(crate) code: Vec<Instruction>,
    /// Instructions that name something outside the code, ascending.
    pub(crate) references: Vec<Reference>,
    /// The app's Maps that it names, by name.
    pub(crate) maps: Vec<MapShape>,
    /// Its own variables and constants.
    pub(crate) variables: Variables,
    /// Constants that the deployer may change (`SYRUP_PARAM`), by name.
    pub(crate) params: Vec<Constant>,
    /// Constants by which it says what it wants of its hook.
    pub(crate) settings: Vec<Constant>,
    /// Where its code came from, ascending; one at the start of each function.
    pub(crate) lines: Vec<Line>,
}

/// A function: `schedule()`, or one that it calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Its first instruction.
    pub(crate) start: usize,
}

impl Function {
    /// Its name as the kernel takes it: compilers put dots into names of copies.
    pub(crate) fn symbol(&self) -> String {
        let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let symbol: String = self.name.chars().map(letter).take(MAX_SYMBOL_BYTES).collect();
        if symbol.starts_with(|c: char| c.is_ascii_digit()) { format!("_{symbol}") } else { symbol }
    }
}

/// An instruction that loads an address, or calls the trusted half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Which instruction.
    pub(crate) at: usize,
    pub(crate) to: Target,
}

/// What a policy may name outside its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// A Map, by its place in [`Checked::maps`].
    Map(usize),
    /// A byte of the policy's own variables.
    Variable(Segment, u32),
    /// `syrup_nr_executors`, which the trusted half defines.
    NrExecutors,
    /// `syrup_nr_executors_here()`: only to be called.
    NrExecutorsHere,
}

/// Where a variable lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Segment {
    /// Initialised variables.
    Data,
    /// Variables that start as zero.
    Bss,
    /// Constants.
    Rodata,
}

/// A policy's variables and constants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Variables {
    pub(crate) data: Vec<u8>,
    pub(crate) bss_bytes: usize,
    pub(crate) rodata: Vec<u8>,
    /// Of all three: a power of two.
    pub(crate) align: u64,
}

/// A Map: an array that can be mapped into memory, with `u32` keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MapShape {
    pub(crate) name: String,
    pub(crate) value_bytes: u32,
    pub(crate) entries: u32,
}

impl MapShape {
    /// What the kernel allocates for its values.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.value_bytes).next_multiple_of(8) * u64::from(self.entries)
    }
}

/// A constant with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Constant {
    pub(crate) name: String,
    /// Its place in [`Variables::rodata`].
    pub(crate) at: usize,
    pub(crate) bytes: usize,
    /// None: it is something else.
    pub(crate) integer: Option<Integer>,
}

/// An integer type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Integer {
    pub(crate) bits: u8,
    pub(crate) signed: bool,
    pub(crate) bool: bool,
}

/// The line from which the instructions from here on came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// First instruction.
    pub(crate) at: usize,
    /// The last part of the file's path: the same wherever it was compiled.
    pub(crate) file: String,
    pub(crate) number: u32,
    pub(crate) column: u32,
}

impl Checked {
    /// `file:line` of an instruction; of none, or of one without a line, just the file.
    pub(crate) fn place(lines: &[Line], at: usize, file_name: &str) -> String {
        let before = lines.partition_point(|line| line.at <= at);
        match before.checked_sub(1).and_then(|last| lines.get(last)) {
            Some(line) if line.number > 0 => format!("{}:{}", line.file, line.number),
            _ => file_name.to_owned(),
        }
    }

    /// Where a function ends.
    pub(crate) fn end_of(&self, function: usize) -> usize {
        self.functions.get(function + 1).map_or(self.code.len(), |next| next.start)
    }

    /// The bytes of the constant by which it says what it wants of a hook; empty when it
    /// has none.
    pub(crate) fn settings(&self, name: &str) -> Vec<u8> {
        let setting = self.settings.iter().find(|constant| constant.name == name);
        setting.map_or_else(Vec::new, |s| self.variables.rodata[s.at..][..s.bytes].to_vec())
    }
}
