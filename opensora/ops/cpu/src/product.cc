#include "product.h"

#include <dlfcn.h>

Product find_product() {
  static void *library = dlopen("libdnnl.so.2", RTLD_NOW | RTLD_NOLOAD);
  static const auto found = reinterpret_cast<Product>(library ? dlsym(library, "dnnl_sgemm") : nullptr);
  return found;
}

extern "C" int has_products() { return find_product() != nullptr; }
