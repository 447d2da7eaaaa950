// The one translation unit with the bodies of Asio and Beast: they take longer to compile than
// everything else here.
#include <boost/asio/impl/src.hpp>
#include <boost/beast/src.hpp>
