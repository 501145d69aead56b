/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whose turn it is on a CPU: the apps that compete for it share it by weight, whatever
 * other CPUs each of them may use. Plain functions, without BPF: tests run them natively
 * (fairness.rs says what should come out).
 *
 * Each app has one virtual time: the CPU time that it had anywhere, by weight. Each CPU
 * has a clock, which is where the app stood that it chose last, and keeps how far each
 * app's virtual time is from where the app stands on this CPU. The app that stands
 * lowest is next.
 *
 * Where an app stands is never far from the clock. Behind it: an app that slept, or had
 * nothing to do here, is owed one slice and no more. Before it: one that has more
 * elsewhere than this CPU could give is not chosen here, and is soon when it has less
 * there. That is what makes the shares those of max-min fairness: of the apps that want a
 * CPU, those that it serves gain virtual time at the rate of its clock, and those that it
 * does not serve gain no less elsewhere. (The same condition, with counters of rounds:
 * Yap et al., Scheduling packets over multiple interfaces while respecting user
 * preferences, CoNEXT 2013.)
 */
#ifndef SYRUP_SCX_FAIRNESS_H
#define SYRUP_SCX_FAIRNESS_H

#include "layout.h"

/* Of a CPU. */
struct syrup_scx_standings {
	__u64 clock_ns;
	__u64 seen_ns; /* the level was computed then, */
	__u64 seen_clock_ns;
	__u64 level;                     /* as fair_level() says */
	__u64 offset_ns[SYRUP_MAX_APPS]; /* of where the app stands from its virtual time */
};

/* How many slices an app may be before the clock, for each CPU that it has. */
#define SYRUP_SCX_LEAD 10

/* Over how long the level of a CPU is looked at. */
#define SYRUP_SCX_LEVEL_NS 100000000ULL

static inline __u64 fair_by_weight(__u64 time_ns, __u32 weight)
{
	return time_ns * 100 / (weight ? weight : 100);
}

/* `running`: threads of the app that have a CPU now. */
static inline __u64 fair_standing(const struct syrup_scx_standings *cpu, __u32 slot, __u64 vtime_ns,
				  __u32 weight, __u32 running)
{
	__u64 slice = fair_by_weight(SYRUP_SCX_SLICE_US * 1000ULL, weight);
	__u64 standing = vtime_ns + cpu->offset_ns[slot % SYRUP_MAX_APPS];
	__s64 ahead = standing - cpu->clock_ns, most = slice * SYRUP_SCX_LEAD * (1 + running);

	if (ahead < -(__s64)slice)
		return cpu->clock_ns - slice;
	return ahead > most ? cpu->clock_ns + most : standing;
}

/* From now on the app stands there on this CPU. */
static inline void fair_stand(struct syrup_scx_standings *cpu, __u32 slot, __u64 vtime_ns,
			      __u64 standing)
{
	cpu->offset_ns[slot % SYRUP_MAX_APPS] = standing - vtime_ns;
}

/* The app that stands there has the CPU. */
static inline void fair_choose(struct syrup_scx_standings *cpu, __u64 standing)
{
	if ((__s64)(cpu->clock_ns - standing) < 0)
		cpu->clock_ns = standing;
}

/*
 * How well the apps do that share the CPU: the rate of its clock, in 1/1024, over the last
 * tenths of a second. What several CPUs write at once is a little off.
 */
static inline __u64 fair_level(struct syrup_scx_standings *cpu, __u64 now_ns)
{
	__u64 elapsed = now_ns - cpu->seen_ns;

	if (elapsed >= SYRUP_SCX_LEVEL_NS) {
		cpu->level =
			(cpu->level + (cpu->clock_ns - cpu->seen_clock_ns) * 1024 / elapsed) / 2;
		cpu->seen_ns = now_ns;
		cpu->seen_clock_ns = cpu->clock_ns;
	}
	return cpu->level;
}

/*
 * Would a thread do better there than here? An app has its share where it wants little of
 * CPUs that others want more. Whoever may choose looks at one other CPU, at random, and two
 * choices are nearly as good as all (Mitzenmacher, IEEE TPDS 12(10), 2001).
 */
static inline __s32 fair_is_better(struct syrup_scx_standings *there,
				   struct syrup_scx_standings *here, __u64 now_ns)
{
	return fair_level(there, now_ns) * 4 > fair_level(here, now_ns) * 5;
}

#endif /* SYRUP_SCX_FAIRNESS_H */
