/* The x87's numbers as programs see them: excess precision, rounding, 80-bit values, and 64-bit integers by library calls. */
#define _GNU_SOURCE
#include "check.h"
#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stdint.h>

static volatile double third = 1.0 / 3.0;
static volatile long double one = 1.0L;

int main(void)
{
    CHECK(FLT_EVAL_METHOD == 2 && LDBL_MANT_DIG == 64);
    char text[64];
    snprintf(text, sizeof text, "%La", one / 3);
    CHECK(strcmp(text, "0xa.aaaaaaaaaaaaaabp-5") == 0);
    snprintf(text, sizeof text, "%.25Lg", sqrtl(2 * one));
    CHECK(strcmp(text, "1.414213562373095048763788") == 0);
    snprintf(text, sizeof text, "%.17g %.17g", third, strtod("2.2250738585072011e-308", NULL));
    CHECK(strcmp(text, "0.33333333333333331 2.2250738585072009e-308") == 0);
    /* An intermediate result has more digits than what is stored of it. */
    volatile double stored = third * third;
    CHECK(third * third != stored);
    const struct {
        int mode;
        long expected;
    } rounding[] = { { FE_TONEAREST, 2 }, { FE_UPWARD, 3 }, { FE_DOWNWARD, 2 }, { FE_TOWARDZERO, 2 } };
    volatile double half = 2.5;
    for (unsigned n = 0; n < 4; n++) {
        CHECK(fesetround(rounding[n].mode) == 0 && lrint(half) == rounding[n].expected);
    }
    CHECK(fesetround(FE_TONEAREST) == 0);
    feclearexcept(FE_ALL_EXCEPT);
    volatile double quotient = 1.0 / (third - third);
    CHECK(isinf(quotient) && fetestexcept(FE_ALL_EXCEPT) == FE_DIVBYZERO);
    volatile int64_t wide = -0x123456789abcdefll;
    volatile uint64_t large = 0xfedcba9876543210ull;
    CHECK(wide / 1000003 == -81985283260 && wide % 1000003 == -637115);
    CHECK(large / 0x100000001ull == 0xfedcba97 && large % 10 == 0);
    volatile double of_wide = wide, of_large = large;
    CHECK((int64_t)of_wide == -81985529216486896 && of_large == 18364758544493064000.0);
    CHECK(fabs(sin(one) - 0.8414709848078965) < 1e-16 && fabs(exp(1) - M_E) < 1e-15);
    return 0;
}
