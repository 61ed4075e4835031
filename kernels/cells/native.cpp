// From cells to the experts in them.

#include "../native.h"

extern "C" {

// Where each token's experts begin. Returns whether a number was out of range, which is then `wrong`.
int32_t cells_count(const CellStarts* starts, const int64_t* cell, const int64_t* start, int64_t cells, int64_t pairs,
                    int64_t tokens, int64_t* first, int64_t* experts, int64_t* wrong) {
    int64_t found = 0, p = 0;
    for (int64_t n = 0; n < tokens; n++) {
        if (start[n] != p) return *wrong = start[n], 1;
        if (start[n + 1] < p || start[n + 1] > pairs) return *wrong = start[n + 1], 1;
        first[n] = found;
        for (; p < start[n + 1]; p++) {
            if (cell[p] < 0 || cell[p] >= cells) return *wrong = cell[p], 1;
            const int32_t begin = (*starts)[cell[p]], end = (*starts)[cell[p] + 1];
            if (begin < 0 || end < begin) return *wrong = end, 1;
            found += end - begin;
        }
    }
    if (p != pairs) return *wrong = p, 1;
    first[tokens] = *experts = found;
    return 0;
}

void cells_fill(const CellStarts* starts, const int64_t* cell, const float* gate, int64_t pairs, int64_t* expert,
                float* expert_gate) {
    for (int64_t p = 0; p < pairs; p++) {
        const int64_t end = (*starts)[cell[p] + 1];
        for (int64_t e = (*starts)[cell[p]]; e < end; e++) {
            *expert++ = e;
            *expert_gate++ = gate[p];
        }
    }
}
}
