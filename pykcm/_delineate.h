/* SPDX-License-Identifier: MIT */
/*
 * A framing's delineation program, run on bytes in memory.
 *
 * KCM runs a program to find where messages end; to divide a super message again, or to measure a
 * message before it is sent, the same program is run here, instruction by instruction.  So there is
 * one rule, and nothing that could differ from it.  Of BPF it knows what framings are made of
 * (pykcm/framing/code.py), assembled with the strategy "none": the message begins at offset 0.
 *
 * No Python in here, no allocation, no state; any number of threads may use it.
 */
#ifndef PYKCM_DELINEATE_H
#define PYKCM_DELINEATE_H

#include <linux/bpf.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Whether a program can be run here: 0, or -EINVAL.  To be called once, before any of the others
 * is called with the program; they rely on it.
 */
int pykcm_delineate_check(const struct bpf_insn *program, size_t count);

/*
 * The length of the message that the data begins with: what the program returns, an int, to KCM.
 * 0 means that there is too little to tell, -EMSGSIZE and -EBADMSG that the header is refused.
 *
 * Whatever the program and the data, nothing outside of them is read and it ends: -EFAULT for a
 * load or store outside the stack, -ELOOP for a program that goes on and on.
 */
int64_t pykcm_delineate(const struct bpf_insn *program, const void *data, size_t size);

/*
 * Divide data into messages: their lengths, at most room of them, are written to lengths.
 *
 * Returns how many there are.  *used is set to their sum, which is less than size if there was no
 * room for more, or if what follows is no whole message.
 */
size_t pykcm_divide(const struct bpf_insn *program, const void *data, size_t size,
		    uint32_t *lengths, size_t room, size_t *used);

#endif
