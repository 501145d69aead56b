//! What each app should get: weighted max-min fairness where not every app may use
//! every core.
//!
//! The root scheduler comes close to it with a few integers (`bpf/fairness.h`); here it is
//! computed, for tests and for whoever wants to know what a change of weights or cores
//! would do.

/// One of the apps that compete.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Its share against others; above zero.
    pub weight: f64,
    /// Bit per core that it may use.
    pub cores: u64,
    /// Most cores that it would use if it were alone: its threads, less when they sleep.
    pub most: f64,
}

/// How many cores each of the apps gets: nobody can have more without somebody having less
/// who has less already, each by its weight.
///
/// What a set of apps can have in all is given by the cores among which they choose, and
/// grows ever less with each further app (a polymatroid, Edmonds 1970). So the shares are
/// found from the worst bottleneck on, as Megiddo does it for sinks of a network
/// (Mathematical Programming 7, 1974): the set that has least by weight shares what it has,
/// and the others share the rest. Looks at all sets, so for up to some 16 apps and as many
/// cores.
#[must_use]
pub fn shares(claims: &[Claim]) -> Vec<f64> {
    let all = (1_usize << claims.len()) - 1;
    let members = |set: usize| (0..claims.len()).filter(move |i| set >> i & 1 == 1);
    let weight = |set: usize| members(set).map(|i| claims[i].weight).sum::<f64>();
    let most: Vec<f64> = (0..=all).map(|set| most_of(claims, members(set))).collect();

    let mut got = vec![0.0; claims.len()];
    let mut settled = 0;
    while settled != all {
        let level = |set: usize| (most[settled | set] - most[settled]) / weight(set);
        let worst = (1..=all)
            .filter(|set| set & settled == 0)
            .min_by(|&a, &b| level(a).total_cmp(&level(b)))
            .unwrap_or(all & !settled);
        members(worst).for_each(|i| got[i] = level(worst) * claims[i].weight);
        settled |= worst;
    }
    got
}

/// Most cores that these apps can use together: the smallest cut between them and the cores.
fn most_of(claims: &[Claim], apps: impl Iterator<Item = usize> + Clone) -> f64 {
    let cores = apps.clone().fold(0, |cores, i| cores | claims[i].cores);
    subsets(cores)
        .map(|full| {
            let others = apps.clone().filter(|&i| claims[i].cores & !full != 0);
            f64::from(full.count_ones()) + others.map(|i| claims[i].most).sum::<f64>()
        })
        .fold(f64::INFINITY, f64::min)
}

fn subsets(of: u64) -> impl Iterator<Item = u64> {
    let mut next = Some(of);
    std::iter::from_fn(move || {
        let set = next?;
        next = (set != 0).then(|| (set - 1) & of);
        Some(set)
    })
}
