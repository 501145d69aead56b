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
 * nothing to do here, is owed one slice, or as much as a slice of a lighter app, which it
 * waited for, put that one before it; ten slices at most. Before it: one that has more
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
	__u64 slice_ns; /* by weight, of the app that set the clock */
	__u64 seen_ns;  /* the level was computed then, */
	__u64 seen_clock_ns;
	__u64 level;                     /* as fair_level() says */
	__u64 offset_ns[SYRUP_MAX_APPS]; /* of where the app stands from its virtual time */
} __attribute__((aligned(64)));

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
	__u64 owed = cpu->slice_ns < slice ? slice : cpu->slice_ns;

	if (owed > slice * SYRUP_SCX_LEAD)
		owed = slice * SYRUP_SCX_LEAD;
	if (ahead < -(__s64)owed)
		return cpu->clock_ns - owed;
	return ahead > most ? cpu->clock_ns + most : standing;
}

/* From now on the app stands there on this CPU. */
static inline void fair_stand(struct syrup_scx_standings *cpu, __u32 slot, __u64 vtime_ns,
			      __u64 standing)
{
	cpu->offset_ns[slot % SYRUP_MAX_APPS] = standing - vtime_ns;
}

/* The app that stands there has the CPU. */
static inline void fair_choose(struct syrup_scx_standings *cpu, __u64 standing, __u32 weight)
{
	if ((__s64)(cpu->clock_ns - standing) >= 0)
		return;
	cpu->clock_ns = standing;
	cpu->slice_ns = fair_by_weight(SYRUP_SCX_SLICE_US * 1000ULL, weight);
}

/*
 * How well the apps do that share the CPU: the rate of its clock, in 1/1024, when it was
 * looked at last for a tenth of a second. Several CPUs may ask at once.
 */
static inline __u64 fair_level(struct syrup_scx_standings *cpu, __u64 now_ns)
{
	__u64 seen = cpu->seen_ns, gained = cpu->clock_ns - cpu->seen_clock_ns;
	__s64 elapsed = now_ns - seen;

	if (elapsed < (__s64)SYRUP_SCX_LEVEL_NS ||
	    __sync_val_compare_and_swap(&cpu->seen_ns, seen, now_ns) != seen)
		return cpu->level;
	cpu->seen_clock_ns += gained;
	/* Nobody asked for long: what it was in between says nothing. */
	if (elapsed < 10 * (__s64)SYRUP_SCX_LEVEL_NS)
		cpu->level = (cpu->level + gained * 1024 / (__u64)elapsed) / 2;
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
