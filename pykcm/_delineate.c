// SPDX-License-Identifier: MIT
/* See _delineate.h.  The instructions are those of RFC 9669, and the packet loads before it. */

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "_delineate.h"

#define FRAME 512 /* bytes of stack, MAX_BPF_STACK */
#define FRAMES 2 /* the program's, and that of a function that it calls */

/* What addresses are to a program: numbers that no message's length comes near. */
#define CONTEXT (UINT64_C(1) << 62)
#define STACK (UINT64_C(1) << 61)

/* Instructions that a run may take; a search through 64 KiB takes some 200,000. */
#define BUDGET (1 << 20)

#define LOAD_IMM64 (BPF_LD | BPF_IMM | BPF_DW)
#define EXIT (BPF_JMP | BPF_EXIT)
#define CALL (BPF_JMP | BPF_CALL)

struct machine {
	uint64_t r[MAX_BPF_REG];
	const uint8_t *data;
	size_t size;
	bool cleared;
	uint8_t stack[FRAME * FRAMES];
};

static unsigned int width_of(uint8_t code)
{
	switch (BPF_SIZE(code)) {
	case BPF_B:
		return 1;
	case BPF_H:
		return 2;
	case BPF_W:
		return 4;
	default:
		return 8;
	}
}

/* ---- before the first run ---- */

static bool is_jump(const struct bpf_insn *insn)
{
	return BPF_CLASS(insn->code) == BPF_JMP && BPF_OP(insn->code) != BPF_CALL &&
	       BPF_OP(insn->code) != BPF_EXIT;
}

static bool is_call(const struct bpf_insn *insn)
{
	return insn->code == CALL && insn->src_reg == BPF_PSEUDO_CALL;
}

static bool check_arithmetic(const struct bpf_insn *insn)
{
	bool reg = BPF_SRC(insn->code) == BPF_X;

	if (insn->dst_reg >= BPF_REG_10 || insn->off)
		return false;
	switch (BPF_OP(insn->code)) {
	case BPF_ADD:
	case BPF_SUB:
	case BPF_MUL:
	case BPF_OR:
	case BPF_AND:
	case BPF_XOR:
	case BPF_MOV:
		return true;
	case BPF_DIV:
	case BPF_MOD:
		return reg || insn->imm;
	case BPF_LSH:
	case BPF_RSH:
	case BPF_ARSH:
		return reg || (insn->imm >= 0 && insn->imm < 64);
	case BPF_NEG:
		return !reg;
	default:
		return false;
	}
}

static bool check_jump(const struct bpf_insn *insn)
{
	switch (BPF_OP(insn->code)) {
	case BPF_JA:
		return BPF_SRC(insn->code) == BPF_K;
	case BPF_JEQ:
	case BPF_JNE:
	case BPF_JGT:
	case BPF_JGE:
	case BPF_JLT:
	case BPF_JLE:
	case BPF_JSGT:
	case BPF_JSGE:
	case BPF_JSLT:
	case BPF_JSLE:
		return true;
	default:
		return false;
	}
}

static bool check_one(const struct bpf_insn *insn)
{
	switch (BPF_CLASS(insn->code)) {
	case BPF_ALU64:
		return check_arithmetic(insn);
	case BPF_ALU:
		return BPF_OP(insn->code) == BPF_END && insn->dst_reg < BPF_REG_10 && !insn->off &&
		       (insn->imm == 16 || insn->imm == 32 || insn->imm == 64);
	case BPF_LDX:
		return BPF_MODE(insn->code) == BPF_MEM && insn->dst_reg < BPF_REG_10;
	case BPF_STX:
		return BPF_MODE(insn->code) == BPF_MEM;
	case BPF_LD:
		if (insn->code == LOAD_IMM64)
			return insn->dst_reg < BPF_REG_10 && !insn->src_reg;
		return BPF_MODE(insn->code) == BPF_IND && width_of(insn->code) < 8;
	case BPF_JMP:
		if (insn->code == EXIT)
			return true;
		if (insn->code == CALL)
			return is_call(insn) ||
			       (!insn->src_reg && insn->imm == BPF_FUNC_skb_load_bytes);
		return check_jump(insn);
	default:
		return false;
	}
}

/* Whether an instruction begins at a slot: not outside the program, nor inside of a 64-bit load. */
static bool is_start(const struct bpf_insn *program, size_t count, size_t slot)
{
	/* Of a 64-bit load's second slot the opcode is 0, which is none. */
	return slot < count && program[slot].code != 0;
}

int pykcm_delineate_check(const struct bpf_insn *program, size_t count)
{
	if (count == 0 || count > INT32_MAX)
		return -EINVAL;
	for (size_t slot = 0; slot < count; slot++) {
		const struct bpf_insn *insn = &program[slot];
		/* What lies outside becomes a large number, which is not below count. */
		size_t next = slot + 1;

		if (insn->dst_reg >= MAX_BPF_REG || insn->src_reg >= MAX_BPF_REG ||
		    !check_one(insn))
			return -EINVAL;
		if (insn->code == LOAD_IMM64) {
			if (next >= count || program[next].code || program[next].dst_reg ||
			    program[next].src_reg || program[next].off)
				return -EINVAL;
			slot = next++;
		}
		if (is_jump(insn) && !is_start(program, count, next + insn->off))
			return -EINVAL;
		if (is_call(insn) && !is_start(program, count, next + insn->imm))
			return -EINVAL;
		/* Nothing runs past the end. */
		if (insn->code != EXIT && insn->code != (BPF_JMP | BPF_JA) &&
		    next >= count)
			return -EINVAL;
	}
	return 0;
}

/* ---- a run ---- */

/* So many bytes of the stack at an address, or NULL. */
static uint8_t *stack_at(struct machine *m, uint64_t address, uint64_t width)
{
	uint64_t at = address - STACK;

	if (width > sizeof(m->stack) || at > sizeof(m->stack) - width)
		return NULL;
	if (!m->cleared) { /* most programs need none */
		memset(m->stack, 0, sizeof(m->stack));
		m->cleared = true;
	}
	return m->stack + at;
}

static bool load(struct machine *m, const struct bpf_insn *insn)
{
	uint64_t address = m->r[insn->src_reg] + (int64_t)insn->off;
	unsigned int width = width_of(insn->code);
	uint16_t half;
	uint32_t word;
	uint8_t *at;

	/* The first field of struct __sk_buff is the data's length. */
	if (address == CONTEXT && width == 4) {
		m->r[insn->dst_reg] = (uint32_t)m->size;
		return true;
	}
	at = stack_at(m, address, width);
	if (!at)
		return false;
	switch (width) {
	case 1:
		m->r[insn->dst_reg] = *at;
		break;
	case 2:
		memcpy(&half, at, sizeof(half));
		m->r[insn->dst_reg] = half;
		break;
	case 4:
		memcpy(&word, at, sizeof(word));
		m->r[insn->dst_reg] = word;
		break;
	default:
		memcpy(&m->r[insn->dst_reg], at, sizeof(m->r[0]));
	}
	return true;
}

static bool store(struct machine *m, const struct bpf_insn *insn)
{
	uint64_t value = m->r[insn->src_reg];
	unsigned int width = width_of(insn->code);
	uint8_t *at = stack_at(m, m->r[insn->dst_reg] + (int64_t)insn->off, width);
	uint16_t half = value;
	uint32_t word = value;

	if (!at)
		return false;
	switch (width) {
	case 1:
		*at = value;
		break;
	case 2:
		memcpy(at, &half, sizeof(half));
		break;
	case 4:
		memcpy(at, &word, sizeof(word));
		break;
	default:
		memcpy(at, &value, sizeof(value));
	}
	return true;
}

/* A packet load: big-endian, to r0.  False where it reaches past the data's end. */
static bool load_packet(struct machine *m, const struct bpf_insn *insn)
{
	uint64_t offset = m->r[insn->src_reg] + (int64_t)insn->imm;
	unsigned int width = width_of(insn->code);
	const uint8_t *at;

	if (width > m->size || offset > m->size - width)
		return false;
	at = m->data + offset;
	switch (width) {
	case 1:
		m->r[0] = *at;
		break;
	case 2:
		m->r[0] = at[0] << 8 | at[1];
		break;
	default:
		m->r[0] = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 |
			  at[3];
	}
	return true;
}

/* bpf_skb_load_bytes(context, offset, to, length); false where the program must not call it so. */
static bool load_bytes(struct machine *m)
{
	uint32_t offset = m->r[2], length = m->r[4];
	uint8_t *to = stack_at(m, m->r[3], length);

	if (m->r[1] != CONTEXT || !length || !to)
		return false;
	if (length > m->size || offset > m->size - length) {
		memset(to, 0, length);
		m->r[0] = (uint64_t)-EFAULT;
	} else {
		memcpy(to, m->data + offset, length);
		m->r[0] = 0;
	}
	return true;
}

static uint64_t swap(uint64_t value, const struct bpf_insn *insn)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	bool foreign = BPF_SRC(insn->code) == BPF_TO_BE;
#else
	bool foreign = BPF_SRC(insn->code) == BPF_TO_LE;
#endif

	switch (insn->imm) {
	case 16:
		return foreign ? __builtin_bswap16(value) : (uint16_t)value;
	case 32:
		return foreign ? __builtin_bswap32(value) : (uint32_t)value;
	default:
		return foreign ? __builtin_bswap64(value) : value;
	}
}

/* An arithmetic shift, without what C leaves to the compiler. */
static uint64_t shift_sign(uint64_t a, uint64_t bits)
{
	return a >> bits | (a >> 63 ? ~(UINT64_MAX >> bits) : 0);
}

/* An instruction in its two forms: with a register, or with a number. */
#define EITHER(code) \
	case (code) | BPF_X: \
	case (code) | BPF_K
#define ALU(name, result) \
	EITHER(BPF_ALU64 | (name)): \
		*dst = (result); \
		continue
/* On to the end of the switch, where the jump is, or to the next instruction. */
#define JUMP_IF(name, condition) \
	EITHER(BPF_JMP | (name)): \
		if (condition) \
			break; \
		continue

int64_t pykcm_delineate(const struct bpf_insn *program, const void *data, size_t size)
{
	struct machine m;
	/* What a function must leave as it was, from r6 on, and where it was called. */
	uint64_t saved[MAX_BPF_REG - BPF_REG_6];
	const struct bpf_insn *caller = NULL, *insn = program;

	memset(m.r, 0, sizeof(m.r));
	m.r[BPF_REG_1] = CONTEXT;
	m.r[BPF_REG_10] = STACK + FRAME * FRAMES;
	m.data = data;
	m.size = size < INT32_MAX ? size : INT32_MAX; /* as much as an skb could hold */
	m.cleared = false;
	for (int budget = BUDGET; budget > 0; budget--, insn++) {
		uint64_t *dst = &m.r[insn->dst_reg];
		uint64_t operand = BPF_SRC(insn->code) == BPF_X ? m.r[insn->src_reg] :
								  (uint64_t)(int64_t)insn->imm;

		/* One switch over all codes: this is what a message of a super message costs. */
		switch (insn->code) {
		ALU(BPF_ADD, *dst + operand);
		ALU(BPF_SUB, *dst - operand);
		ALU(BPF_MUL, *dst * operand);
		ALU(BPF_DIV, operand ? *dst / operand : 0);
		ALU(BPF_MOD, operand ? *dst % operand : *dst);
		ALU(BPF_OR, *dst | operand);
		ALU(BPF_AND, *dst & operand);
		ALU(BPF_XOR, *dst ^ operand);
		ALU(BPF_LSH, *dst << (operand & 63));
		ALU(BPF_RSH, *dst >> (operand & 63));
		ALU(BPF_ARSH, shift_sign(*dst, operand & 63));
		ALU(BPF_NEG, -*dst);
		ALU(BPF_MOV, operand);
		JUMP_IF(BPF_JEQ, *dst == operand);
		JUMP_IF(BPF_JNE, *dst != operand);
		JUMP_IF(BPF_JGT, *dst > operand);
		JUMP_IF(BPF_JGE, *dst >= operand);
		JUMP_IF(BPF_JLT, *dst < operand);
		JUMP_IF(BPF_JLE, *dst <= operand);
		JUMP_IF(BPF_JSGT, (int64_t)*dst > (int64_t)operand);
		JUMP_IF(BPF_JSGE, (int64_t)*dst >= (int64_t)operand);
		JUMP_IF(BPF_JSLT, (int64_t)*dst < (int64_t)operand);
		JUMP_IF(BPF_JSLE, (int64_t)*dst <= (int64_t)operand);
		case BPF_JMP | BPF_JA:
			break;
		case EXIT:
			if (!caller)
				return (int32_t)m.r[0];
			memcpy(&m.r[BPF_REG_6], saved, sizeof(saved));
			insn = caller;
			caller = NULL;
			continue;
		case CALL:
			if (!is_call(insn)) {
				if (!load_bytes(&m))
					return -EFAULT;
				continue;
			}
			if (caller)
				return -EFAULT;
			memcpy(saved, &m.r[BPF_REG_6], sizeof(saved));
			m.r[BPF_REG_10] = STACK + FRAME;
			caller = insn;
			insn += insn->imm;
			continue;
		case LOAD_IMM64:
			*dst = (uint32_t)insn[0].imm | (uint64_t)(uint32_t)insn[1].imm << 32;
			insn++;
			continue;
		default:
			if (BPF_CLASS(insn->code) == BPF_LD) {
				if (!load_packet(&m, insn))
					return 0;
			} else if (BPF_CLASS(insn->code) == BPF_ALU) {
				*dst = swap(*dst, insn);
			} else if (!(BPF_CLASS(insn->code) == BPF_LDX ? load : store)(&m, insn)) {
				return -EFAULT;
			}
			continue;
		}
		insn += insn->off;
	}
	return -ELOOP;
}

size_t pykcm_divide(const struct bpf_insn *program, const void *data, size_t size,
		    uint32_t *lengths, size_t room, size_t *used)
{
	const uint8_t *start = data;
	size_t found = 0, sum = 0;

	while (found < room && sum < size) {
		int64_t length = pykcm_delineate(program, start + sum, size - sum);

		if (length <= 0 || (uint64_t)length > size - sum)
			break;
		lengths[found++] = length;
		sum += length;
	}
	*used = sum;
	return found;
}
