//! The work of one request: so many GETs, or a scan over so many keys. Longer
//! service times mean more RocksDB work, never a spin loop.

use std::path::{Path, PathBuf};
use std::sync::Barrier;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::clock::thread_cpu_ns;
use crate::rocksdb::{self, Database, VALUE_BYTES};
use crate::wire::Class;

/// Builds a database that servers then open read-only.
///
/// Servers build a missing one themselves; on the host it is much faster than
/// in an emulated guest.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  syrup-bench build-db --db target/bench-db-demo --keys 200000")]
pub struct BuildOptions {
    /// Its folder; nothing is done when it is there already.
    #[arg(long)]
    pub db: PathBuf,
    /// Keys, 64 bytes each.
    #[arg(long)]
    pub keys: u64,
}

/// Builds a database.
pub fn build(options: &BuildOptions) -> Result<()> {
    ensure_built(&options.db, options.keys)
}

/// Keys of one SCAN where nothing is scaled.
pub const SCAN_KEYS: u64 = 5000;

/// How much RocksDB work a request of each class is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// RocksDB GETs per GET request.
    pub gets: u64,
    /// Keys read per SCAN request.
    pub scan_keys: u64,
}

impl Work {
    /// One GET, and a scan of [`SCAN_KEYS`].
    pub const NATURAL: Self = Self { gets: 1, scan_keys: SCAN_KEYS };
}

/// What one unit of work costs on this machine now, in CPU time.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct UnitCost {
    /// One GET of a random key.
    pub get_ns: f64,
    /// One key of a scan.
    pub scan_key_ns: f64,
}

impl UnitCost {
    /// The work that takes these CPU times; a time of 0 means natural work.
    #[must_use]
    pub fn work_for(&self, get_us: f64, scan_us: f64) -> Work {
        let units = |us: f64, unit_ns: f64| ((us * 1000.0 / unit_ns).round() as u64).max(1);
        Work {
            gets: if get_us > 0.0 { units(get_us, self.get_ns) } else { Work::NATURAL.gets },
            scan_keys: if scan_us > 0.0 {
                units(scan_us, self.scan_key_ns)
            } else {
                Work::NATURAL.scan_keys
            },
        }
    }

    /// CPU time of a request with this work, in microseconds.
    #[must_use]
    pub fn service_us(&self, work: Work, class: Class) -> f64 {
        match class {
            Class::GET => work.gets as f64 * self.get_ns / 1000.0,
            _ => work.scan_keys as f64 * self.scan_key_ns / 1000.0,
        }
    }
}

/// An open, warm database and its number of keys.
pub struct Store {
    database: Database,
    keys: u64,
}

impl Store {
    /// Opens `path`, building it first when it is not there, and reads every
    /// key once, so that all blocks are in memory.
    pub fn open(path: &Path, keys: u64) -> Result<Self> {
        ensure!(keys > 0, "--keys must be at least 1");
        ensure_built(path, keys)?;
        // Several times the database: the cache has dozens of shards, and one
        // that gets more than its share of blocks must not evict.
        let cache_bytes = keys as usize * (VALUE_BYTES + 40) * 2 + (64 << 20);
        let database = Database::open(path, cache_bytes)
            .with_context(|| format!("cannot open the database {}", path.display()))?;
        let store = Self { database, keys };
        store.database.scan(0, keys)?;
        Ok(store)
    }

    /// Number of keys.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// Serves one request; returns what was read, so that it must be read.
    pub fn serve(&self, class: Class, key: u64, work: Work) -> Result<u64, rocksdb::Error> {
        match class {
            Class::GET => {
                let mut sum = 0u64;
                let mut key = key % self.keys;
                for _ in 0..work.gets {
                    sum = sum.wrapping_add(self.database.get(key)?);
                    key = scattered(key) % self.keys;
                }
                Ok(sum)
            }
            _ => self.database.scan(key % self.keys, work.scan_keys),
        }
    }

    /// Measures what units of work cost in CPU time while every CPU is busy
    /// with them: CPUs share a core, or (in an emulated machine whose time
    /// counts instructions) one thread of the host, and are faster alone.
    pub fn calibrate(&self) -> Result<UnitCost> {
        let costs = on_every_cpu(|cpu| self.calibrate_one(cpu))?;
        let mut get: Vec<f64> = costs.iter().map(|cost| cost.get_ns).collect();
        let mut scan: Vec<f64> = costs.iter().map(|cost| cost.scan_key_ns).collect();
        Ok(UnitCost { get_ns: median(&mut get), scan_key_ns: median(&mut scan) })
    }

    /// The median of many batches of each kind of work, over about 0.1 s: a
    /// virtual CPU can be slow for tens of milliseconds.
    fn calibrate_one(&self, cpu: u64) -> Result<UnitCost> {
        const BATCHES: u64 = 51;
        const GETS: u64 = 200;
        let scan_keys = SCAN_KEYS.min(self.keys);
        let mut get = Vec::new();
        let mut scan = Vec::new();
        for batch in 0..BATCHES {
            let key = scattered(cpu * BATCHES + batch);
            let start = thread_cpu_ns();
            self.serve(Class::GET, key, Work { gets: GETS, scan_keys })?;
            let middle = thread_cpu_ns();
            self.serve(Class::SCAN, key, Work { gets: GETS, scan_keys })?;
            get.push((middle - start) as f64 / GETS as f64);
            scan.push((thread_cpu_ns() - middle) as f64 / scan_keys as f64);
        }
        Ok(UnitCost { get_ns: median(&mut get), scan_key_ns: median(&mut scan) })
    }
}

/// Runs `measure` on as many threads as there are CPUs, all started together,
/// each with its number; returns what each of them measured.
fn on_every_cpu<T: Send>(measure: impl Fn(u64) -> Result<T> + Sync) -> Result<Vec<T>> {
    let cpus = std::thread::available_parallelism()?.get();
    let together = Barrier::new(cpus);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus as u64)
            .map(|cpu| {
                let (together, measure) = (&together, &measure);
                scope.spawn(move || {
                    together.wait();
                    measure(cpu)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a measuring thread panicked"))?)
            .collect()
    })
}

/// Builds the database at `path` unless one with `keys` keys is there already.
/// It is built beside and renamed, so that a broken build is never used.
pub fn ensure_built(path: &Path, keys: u64) -> Result<()> {
    let note = path.join("syrup-bench.keys");
    if path.exists() {
        let found = std::fs::read_to_string(&note).unwrap_or_default();
        ensure!(
            found.trim() == keys.to_string(),
            "{} exists but does not hold {keys} keys (it says '{}'): remove it, or give another \
             --db or --keys",
            path.display(),
            found.trim()
        );
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    std::fs::create_dir_all(&parent)
        .with_context(|| format!("cannot create {}", parent.display()))?;
    let staging = tempfile::tempdir_in(&parent)
        .with_context(|| format!("cannot write to {}", parent.display()))?;
    let built = staging.path().join("db");
    Database::build(&built, keys)?;
    std::fs::write(built.join("syrup-bench.keys"), keys.to_string())?;
    match std::fs::rename(&built, path) {
        // Another process built the same one meanwhile.
        Err(_) if path.exists() => Ok(()),
        outcome => outcome.with_context(|| format!("cannot create {}", path.display())),
    }
}

/// A fixed, well-mixed function of a number (a step of SplitMix64).
#[must_use]
pub fn scattered(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The middle value, or the mean of the two in the middle; 0 for none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count => (values[(count - 1) / 2] + values[count / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&mut []), 0.0);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 9.0]), 3.0);
    }

    #[test]
    fn work_fits_the_time_that_was_asked_for() {
        let cost = UnitCost { get_ns: 4000.0, scan_key_ns: 200.0 };
        assert_eq!(cost.work_for(0.0, 0.0), Work::NATURAL);
        let work = cost.work_for(1600.0, 96_000.0);
        assert_eq!(work, Work { gets: 400, scan_keys: 480_000 });
        assert_eq!(cost.service_us(work, Class::GET), 1600.0);
        assert_eq!(cost.service_us(work, Class::SCAN), 96_000.0);
        assert_eq!(cost.work_for(0.1, 0.1), Work { gets: 1, scan_keys: 1 });
    }

    /// CPU time of one request of each class, in microseconds, measured as the
    /// calibration measures: with every CPU busy.
    fn measured_us(store: &Store, work: Work) -> [f64; 2] {
        [Class::GET, Class::SCAN].map(|class| {
            let mut runs = on_every_cpu(|cpu| {
                let mut runs = Vec::new();
                for run in 0..15 {
                    let start = thread_cpu_ns();
                    store.serve(class, scattered(cpu * 15 + run), work)?;
                    runs.push((thread_cpu_ns() - start) as f64 / 1000.0);
                }
                Ok(runs)
            })
            .unwrap()
            .concat();
            median(&mut runs)
        })
    }

    #[test]
    fn calibrated_work_takes_about_as_long_as_asked() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("db"), 20_000).unwrap();
        let targets_us = [2000.0, 8000.0];
        // A shared host changes its speed between calibration and measurement
        // now and then; wrong arithmetic is wrong in every round.
        let mut rounds = Vec::new();
        for _ in 0..5 {
            let work = store.calibrate().unwrap().work_for(targets_us[0], targets_us[1]);
            let measured_us = measured_us(&store, work);
            rounds.push(measured_us);
            let in_bounds =
                |(measured, target): (f64, f64)| (target / 2.0..target * 2.0).contains(&measured);
            if measured_us.into_iter().zip(targets_us).all(in_bounds) {
                return;
            }
        }
        panic!("GET and SCAN took {rounds:?} us instead of {targets_us:?}");
    }

    #[test]
    fn a_database_is_built_once_and_its_size_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/db");
        ensure_built(&path, 100).unwrap();
        let built = std::fs::metadata(&path).unwrap().modified().unwrap();
        ensure_built(&path, 100).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), built);
        let error = ensure_built(&path, 101).unwrap_err();
        assert!(error.to_string().contains("does not hold 101 keys"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path().join("deep")).unwrap().count(), 1);
    }
}
