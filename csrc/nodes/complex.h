#pragma once
// Rules between real and complex values. An adjoint of a complex value is, as in autograd, the derivative with respect to its real
// part plus i times that with respect to its imaginary part; <a, t> is the real part of conj(a) t.
#include <c10/util/complex.h>

#include "rule.h"

namespace gpfast {

std::unique_ptr<Rule> view_as_real(const Place& place);
std::unique_ptr<Rule> view_as_complex(const Place& place);
// y = real + i imag, of two inputs.
std::unique_ptr<Rule> complex_of_parts(const Place& place);
std::unique_ptr<Rule> conjugation(const Place& place);
// y = factor h, of a complex or a real h.
std::unique_ptr<Rule> rotation(const Place& place, c10::complex<double> factor);
// y = |h| and y = arg h, whose derivatives are zero where h is.
std::unique_ptr<Rule> modulus(const Place& place, at::Tensor h);
std::unique_ptr<Rule> angle(const Place& place, at::Tensor h);

}  // namespace gpfast
