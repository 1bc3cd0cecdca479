"""Publishing from ordinary code: an asynchronous web application, and a synchronous script."""
